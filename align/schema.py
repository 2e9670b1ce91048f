"""Reading YAML with places: every problem names the file, the line, the key and the fix."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, validate_call

Key = tuple[str | int, ...]  # where a value stands: ("objective", "k")


class Loader(yaml.SafeLoader):
    """YAML with the numbers of version 1.2: 1e-4 is one."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class ConfigError(ValueError):
    """Something in a recipe that would not run; `problems` has one line for each."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


@dataclass
class Source:
    """A parsed recipe: plain data, and the place of every key."""

    data: dict[str, Any]
    places: dict[Key, str] = field(default_factory=dict)
    name: str = "recipe"
    keys: list[str] = field(default_factory=list)  # every valid `section.key`, to say where a misplaced one belongs

    def problem(self, key: Key, what: str) -> str:
        """`file:line: key: what is wrong`, at the nearest enclosing key that has a line."""
        known = next((key[:n] for n in range(len(key), 0, -1) if key[:n] in self.places), None)
        where = self.places[known] if known else self.name
        return f"{where}: {'.'.join(map(str, key))}: {what}"


def read(path: str | Path, overrides: Iterable[str] = ()) -> Source:
    """A YAML recipe with `key=value` overrides applied. Raises `ConfigError`, `FileNotFoundError`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=Loader)
        data = yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid YAML: {error}"]) from error
    if not isinstance(data, dict):
        raise ConfigError([f"{path}: a recipe is a mapping with keys such as model, data, objective"])
    source = Source(data, name=str(path))
    _mark(node, (), source)
    collect(overrides, lambda override: _override(source, override))
    return source


def collect(items: Iterable, step: Callable) -> tuple:
    """step(item) of each item; one `ConfigError` with the problems of all."""
    problems, out = [], []
    for item in items:
        try:
            out.append(step(item))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return tuple(out)


def _mark(node: yaml.Node, key: Key, source: Source) -> None:
    """Note the line of every key below `node`; a key that stands twice is an error."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            child = (*key, name.value)
            place = f"{source.name}:{name.start_mark.line + 1}"
            if child in source.places:
                raise ConfigError([f"{place}: {'.'.join(map(str, child))}: stands twice; keep one"])
            source.places[child] = place
            _mark(value, child, source)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            source.places[(*key, i)] = f"{source.name}:{value.start_mark.line + 1}"
            _mark(value, (*key, i), source)


def _override(source: Source, override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError([f"command line: {override!r}: write key=value, for example run.steps=10"])
    here, rest, whole = source.data, name, ()
    while True:
        part, rest = _next_key(here, rest, name)
        whole = (*whole, part)
        if not rest:
            break
        if isinstance(here, dict) and here.get(part) is None:
            here[part] = {}
        here = here[part]
        if not isinstance(here, (dict, list)):
            raise ConfigError([f"command line: {name}: {part!r} is not a section"])
    try:
        here[part] = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ConfigError([f"command line: {name}: not a YAML value: {text!r}"]) from error
    for key in [key for key in source.places if key[: len(whole)] == whole]:
        del source.places[key]  # what stood there before is gone
    for n in range(1, len(whole) + 1):
        source.places.setdefault(whole[:n], "command line")


def _next_key(here: dict | list, rest: str, name: str) -> tuple[str | int, str]:
    """The first key of the dotted `rest` below `here`, and what is left. Keys may hold dots: the longest one there
    wins. In a list it is a number."""
    first, _, left = rest.partition(".")
    if isinstance(here, list):
        if not first.isdecimal() or int(first) >= len(here):
            raise ConfigError([f"command line: {name}: {first!r} must be a place in the list, below {len(here)}"])
        return int(first), left
    there = [key for key in here if isinstance(key, str) and f"{rest}.".startswith(f"{key}.")]
    key = max(there, key=len, default=first)
    return key, rest[len(key) + 1 :]


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean 'x'?` or the list of what there is."""
    words = sorted(words)
    close = difflib.get_close_matches(str(word), words, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(words)}"


def distinct(names: list[str]) -> list[str]:
    """The names, numbered by their place where one stands twice."""
    return [f"{name}_{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def models_in(hint: Any) -> list[type[BaseModel]]:
    """The pydantic models in a type, through unions and lists."""
    if inspect.isclass(hint) and issubclass(hint, BaseModel):
        return [hint]
    return [model for part in typing.get_args(hint) for model in models_in(part)]


def names_at(hint: Any, path: Key) -> list[str]:
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
    fields = [(prefix + name, field) for model in models_in(hint) for name, field in model.model_fields.items()]
    return [path for name, field in fields for path in (name, *paths_in(field.annotation, f"{name}."))]


MISSING = ("missing", "missing_keyword_only_argument")
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
OUTSIDE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "too_short", "finite_number")


def explain(
    error: ValidationError, data: Any, source: Source, key: Key, names: Callable[[Key], list[str]]
) -> list[str]:
    """One line for each problem that pydantic found in `data`, which stands at `key`.

    `names` gives the valid keys at a place below `key`.
    """
    problems: dict[Key, list[str]] = {}
    for place, item in _meant(error, data):
        if item["type"] in UNKNOWN and place[-1] in names(place[:-1]):
            what = "does not go with the keys beside it; leave one out"
        elif item["type"] in UNKNOWN:
            belongs = [path for path in source.keys if path.rpartition(".")[2] == place[-1]]
            belongs = [path if "." in path else "the top level" for path in belongs]
            fix = f"it belongs at {' or '.join(belongs)}" if belongs else nearest(place[-1], names(place[:-1]))
            what = f"unknown key; {fix}"
        elif item["type"] in MISSING:
            what = "missing; this key is needed"
        else:
            what = f"{item['msg']}, but it is {item['input']!r}"
        problems.setdefault(place, []).append(what)
    return [source.problem((*key, *place), "; or ".join(dict.fromkeys(whats))) for place, whats in problems.items()]


def _meant(error: ValidationError, data: Any) -> list[tuple[Key, dict]]:
    """(place, error) of pydantic's errors; of a union, those of the member that was most likely meant.

    That is a member that looked inside the value before one that refused it whole, then the one with the
    fewest problems beyond a number out of range.
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

        def distance(found: list[tuple[Key, dict]], at: Key = at) -> tuple[bool, int]:
            outside = all(place == at for place, _ in found)
            return outside, sum(item["type"] not in OUTSIDE for _, item in found)

        least = min(map(distance, members.values()))
        out += [entry for found in members.values() if distance(found) == least for entry in found]
    return out


def _place(item: dict, data: Any) -> tuple[Key, tuple[Key, str] | None]:
    """Where a problem stands in `data`, and the first union above it with its member: pydantic mixes them."""
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


def load_object(path: str) -> Any:
    """The Python object at `package.module:attribute`.

    Raises `ValueError` that says which part is wrong. Importing runs the module's code: name only your own.
    """
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", path):
        raise ValueError(f"{path!r} is not a dotted path; write package.module:name")
    try:
        return pkgutil.resolve_name(path)
    except ModuleNotFoundError as error:
        raise ValueError(f"cannot import {error.name!r} for {path!r}; is it installed or on PYTHONPATH?") from error
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path!r}: {error}") from error
    except (Exception, SystemExit) as error:  # the module is the user's: whatever it raises belongs to this path
        raise ValueError(f"{path!r}: importing it raised {type(error).__name__}: {error}") from error


def call(factory: Callable, args: Mapping[str, Any] | None, source: Source, key: Key) -> Any:
    """factory(**args) with types and ranges checked against its signature; problems name the place."""
    if args is not None and not (isinstance(args, Mapping) and all(isinstance(name, str) for name in args)):
        raise ConfigError([source.problem(key, f"takes a mapping of its arguments, but it is {args!r}")])
    hints = typing.get_type_hints(factory, include_extras=True)

    def names(place: Key) -> list[str]:
        return names_at(hints.get(place[0]), place[1:]) if place else list(inspect.signature(factory).parameters)

    try:
        return validate_call(factory)(**(args or {}))
    except ValidationError as error:
        raise ConfigError(explain(error, args or {}, source, key, names)) from error
    except ValueError as error:
        raise ConfigError([source.problem(key, str(error))]) from error
