"""Put problems into words: what pydantic found, at which key, with the nearest valid name."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from align.config import other_libraries
from align.config.recipe_file import KeyPath, RecipeFile

BOOLEAN = "must be a number, but it is true or false"

LONGEST = 200  # characters of a value that a message shows

# pydantic's types of errors
MISSING = ("missing", "missing_keyword_only_argument")

NO_SECTION = ("model_type", "model_attributes_type", "dict_type")

UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")

OUTSIDE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "too_short", "finite_number")


def nearest(word: str, words: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the list of what there is where nothing is close. Swapped letters are closest."""
    word, there = str(word).lower(), {name.lower(): name for name in sorted(set(words), reverse=True)}
    close = difflib.get_close_matches(word, there, n=max(1, len(there)))
    close.sort(key=lambda name: sorted(name) != sorted(word))
    return f"did you mean {there[close[0]]!r}?" if close else f"there are: {', '.join(sorted(there.values()))}"


def distinct(names: list[str]) -> list[str]:
    """The names, each that stands twice numbered by its place."""
    return [f"{name}_{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def models_in(hint: Any) -> list[type[BaseModel]]:
    """The pydantic models in a type, through unions and lists."""
    if inspect.isclass(hint) and issubclass(hint, BaseModel):
        return [hint]
    return [model for part in typing.get_args(hint) for model in models_in(part)]


def names_at(hint: Any, path: KeyPath) -> list[str]:
    """The keys that are valid at `path` below a type."""
    models = models_in(hint)
    for part in path:
        if isinstance(part, str):
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            if fields:  # else a name that the user gave, as in data: {NAME: ...}
                models = [inner for field in fields for inner in models_in(field.annotation)]
    return [info.alias or name for model in models for name, info in model.model_fields.items()]


def paths_in(hint: Any, prefix: str = "") -> list[str]:
    """`section.key` of every key below a type."""
    named = [(info.alias or name, info) for model in models_in(hint) for name, info in model.model_fields.items()]
    fields = [(prefix + name, info) for name, info in named]
    return [path for name, field in fields for path in (name, *paths_in(field.annotation, f"{name}."))]


def booleans(hints: Sequence[Any], value: Any) -> list[KeyPath]:
    """The places below `value`, which one of the types must take, where true or false stands for a number.

    Pydantic would read 1 and 0.
    """
    members = [member for hint in hints for member in _members(hint)]
    if isinstance(value, bool):
        return [()] if {int, float} & {*members} and not {bool, Any} & {*members} else []
    if isinstance(value, Mapping):
        inside = list(value.items())
    else:
        inside = list(enumerate(value)) if isinstance(value, list) else []
    below = [(name, [hint for member in members for hint in _below(member, name)], inner) for name, inner in inside]
    return [(name, *place) for name, hints, inner in below for place in booleans(hints, inner)]


def explain(
    error: ValidationError, data: Any, file: RecipeFile, key: KeyPath, names: Callable[[KeyPath], list[str]]
) -> list[str]:
    """One line for each problem that pydantic found in `data`, which stands at `key`.

    `names` returns the valid keys at a place below `key`.
    """
    problems: dict[KeyPath, list[str]] = {}
    for place, item in _meant(error, data):
        if item["type"] in UNKNOWN and place[-1] in names(place[:-1]):
            problems.setdefault(place, []).append("does not go with the keys beside it; leave one out")
        elif item["type"] in UNKNOWN:
            for leaf, what in _unknown((*key, *place), item["input"], file, names(place[:-1])):
                problems.setdefault((*place, *leaf), []).append(what)
        elif item["type"] in MISSING:
            problems.setdefault(place, []).append("missing; this key is needed")
        elif item["loc"][-1] == "[key]" or item["type"] == "invalid_key":
            problems.setdefault(place, []).append("a name here is text; put it in quotes")
        else:
            problems.setdefault(place, []).append(f"{_said(item)}, but it is {shortened(item['input'])}")
    return [file.problem((*key, *place), "; or ".join(dict.fromkeys(whats))) for place, whats in problems.items()]


def _said(item: dict) -> str:
    """What pydantic, or a validator of this library, says of a value."""
    return item["msg"].removeprefix("Value error, ")


def shortened(value: Any) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _unknown(key: KeyPath, value: Any, file: RecipeFile, names: list[str]) -> list[tuple[KeyPath, str]]:
    """[(place below `key`, what to do)] of an unknown key; several where it is a section of another library."""
    if what := _belongs(key[-1], file):
        return [((), f"unknown key; {what}")]
    leaves = other_libraries.leaves((), value)
    told = {leaf: other_libraries.advice(".".join(map(str, (*key, *leaf)))) for leaf in leaves}
    if any(told.values()):
        fixes = {leaf: told[leaf] or _belongs((*key, *leaf)[-1], file) or nearest(key[-1], names) for leaf in leaves}
        return [(leaf, f"unknown key; {fix}") for leaf, fix in fixes.items()]
    return [((), f"unknown key; {nearest(key[-1], names)}")]


def _belongs(name: Any, file: RecipeFile) -> str | None:
    """Say where a key of this name belongs; None where no section has one."""
    paths = [path for path in file.keys if path.rpartition(".")[2] == name]
    places = dict.fromkeys(path if "." in path else "the top level" for path in paths)
    return f"it belongs at {' or '.join(places)}" if places else None


def _members(hint: Any) -> list[Any]:
    """The types of a union, each without its ranges; of any other type itself."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _members(parts[0])
    if origin in (typing.Union, types.UnionType):
        return [member for part in parts for member in _members(part)]
    return [hint]


def _below(member: Any, name: Any) -> list[Any]:
    """The types that may stand at a key or an index of a value of this type."""
    parts = typing.get_args(member)
    if inspect.isclass(member) and issubclass(member, BaseModel):
        fields = member.model_fields.items()
        return [field.annotation for key, field in fields if name in (key, field.alias)]
    if not parts:
        return []
    if isinstance(name, int):
        return list(parts[:1]) if typing.get_origin(member) in (list, tuple, Sequence) else []
    return list(parts[1:]) if typing.get_origin(member) in (dict, Mapping) else []


def _meant(error: ValidationError, data: Any) -> list[tuple[KeyPath, dict]]:
    """(place, error) of pydantic's errors; of a union only those of the member that was most likely meant.

    A member that looked inside the value comes before one that refused it whole, then the one with the fewest problems
    besides numbers out of range.
    """
    out, unions = [], {}
    for item in error.errors(include_url=False):
        place, union = _place(item, data)
        if union is None:
            out.append((place, item))
        else:
            at, member = union
            unions.setdefault(at, {}).setdefault(member, []).append((place, item))
    for at, members in unions.items():

        def distance(found: list[tuple[KeyPath, dict]], at: KeyPath = at) -> tuple[bool, int]:
            """How far the value is from a member; the least is the one that was meant."""
            outside = all(place == at for place, _ in found)
            return outside, sum(item["type"] not in OUTSIDE for _, item in found)

        least = min(map(distance, members.values()))
        out += [entry for found in members.values() if distance(found) == least for entry in found]
    return out


def _place(item: dict, data: Any) -> tuple[KeyPath, tuple[KeyPath, str] | None]:
    """(where a problem stands in `data`, (where the first union above it stands, its member) or None).

    Pydantic gives keys and members of unions in one list.
    """
    place, union = [], None
    for part in item["loc"]:
        if isinstance(data, Mapping) and part in data or isinstance(data, list) and part in range(len(data)):
            data = data[part]
            place.append(part)
        elif item["type"] in MISSING and part == item["loc"][-1]:
            place.append(part)
        else:
            union = union or (tuple(place), str(part))
    return tuple(place), union
