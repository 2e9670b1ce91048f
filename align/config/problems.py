"""Put problems into words: what pydantic found, at which key, with the nearest valid name."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from align.config.recipe_file import KeyPath, RecipeFile

# pydantic's types of errors
MISSING = ("missing", "missing_keyword_only_argument")

UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")

OUTSIDE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "too_short", "finite_number")


# keys of TRL whose nearest name here would be another thing
OTHER_LIBRARIES = {
    "num_generations": "sampling.group_size",
    "max_completion_length": "sampling.max_response_tokens",
    "max_prompt_length": "data.max_prompt_tokens",
    "learning_rate": "optim.lr",
    "num_iterations": "optim.updates_per_step",
    "epsilon": "clip_low and clip_high of the objective",
    "epsilon_high": "clip_high of the objective",
    "beta": "add: [{kl_policy_ref: {coef: ...}}] to the objective",
}


def nearest(word: str, words: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the list of what there is where nothing is close."""
    words = sorted(words)
    close = difflib.get_close_matches(str(word), words, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(words)}"


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


def explain(
    error: ValidationError, data: Any, file: RecipeFile, key: KeyPath, names: Callable[[KeyPath], list[str]]
) -> list[str]:
    """One line for each problem that pydantic found in `data`, which stands at `key`.

    `names` returns the valid keys at a place below `key`.
    """
    problems: dict[KeyPath, list[str]] = {}
    for place, item in _meant(error, data):
        if item["type"] in UNKNOWN and place[-1] in names(place[:-1]):
            what = "does not go with the keys beside it; leave one out"
        elif item["type"] in UNKNOWN:
            elsewhere = OTHER_LIBRARIES.get(place[-1])
            belongs = [path for path in file.keys if path.rpartition(".")[2] == place[-1]]
            belongs = [path if "." in path else "the top level" for path in belongs]
            fix = f"it belongs at {' or '.join(belongs)}" if belongs else nearest(place[-1], names(place[:-1]))
            if elsewhere and not belongs:
                fix = f"write {elsewhere} (recipes/coming_from_trl.md)"
            what = f"unknown key; {fix}"
        elif item["type"] in MISSING:
            what = "missing; this key is needed"
        else:
            what = f"{item['msg']}, but it is {item['input']!r}"
        problems.setdefault(place, []).append(what)
    return [file.problem((*key, *place), "; or ".join(dict.fromkeys(whats))) for place, whats in problems.items()]


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
