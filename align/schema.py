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

    def problem(self, key: Key, what: str) -> str:
        """`file:line: key: what is wrong`, at the nearest enclosing key that has a line."""
        known = next((key[:n] for n in range(len(key), 0, -1) if key[:n] in self.places), None)
        where = self.places[known] if known else self.name
        return f"{where}: {'.'.join(map(str, key))}: {what}"


def read(path: str | Path, overrides: Iterable[str] = ()) -> Source:
    """A YAML recipe with `key=value` overrides applied. Raises `ConfigError`, `FileNotFoundError`."""
    path = Path(path)
    text = path.read_text()
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: not valid YAML: {error}"]) from error
    if not isinstance(data, dict):
        raise ConfigError([f"{path}: a recipe is a mapping with keys such as model, data, objective"])
    source = Source(data, name=str(path))
    _mark(node, (), source)
    for override in overrides:
        _override(source, override)
    return source


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
    *parents, last = name.split(".")
    here = source.data
    for parent in parents:
        if parent not in here or here[parent] is None:
            here[parent] = {}
        here = here[parent]
        if not isinstance(here, dict):
            raise ConfigError([f"command line: {name}: {parent!r} is not a section"])
    try:
        here[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError([f"command line: {name}: not a YAML value: {text!r}"]) from error
    for n in range(1, len(parents) + 2):
        key = tuple(name.split(".")[:n])
        if n == len(parents) + 1 or key not in source.places:
            source.places[key] = "command line"


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean 'x'?` or the list of what there is."""
    words = sorted(words)
    close = difflib.get_close_matches(str(word), words, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(words)}"


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
            models = [inner for field in fields for inner in models_in(field.annotation)]
    return [name for model in models for name in model.model_fields]


def explain(
    error: ValidationError, source: Source, key: Key, names: Callable[[Key], list[str]], everywhere: Iterable[str] = ()
) -> list[str]:
    """One line for each problem that pydantic found below `key`.

    `names` gives the valid keys at a place below `key`; `everywhere` lists `section.key` of the whole recipe,
    to say where a misplaced key belongs.
    """
    problems: dict[Key, list[str]] = {}
    for item in error.errors(include_url=False):
        place = tuple(part for part in item["loc"] if _is_key(part))
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            belongs = [name for name in everywhere if name.endswith(f".{place[-1]}")]
            fix = f"it belongs at {' or '.join(belongs)}" if belongs else nearest(place[-1], names(place[:-1]))
            what = f"unknown key; {fix}"
        elif item["type"] in ("missing", "missing_keyword_only_argument"):
            what = "missing; this key is needed"
        else:
            what = f"{item['msg']}, but it is {item['input']!r}"
        problems.setdefault(place, []).append(what)
    return [source.problem((*key, *place), "; or ".join(dict.fromkeys(whats))) for place, whats in problems.items()]


def _is_key(part: str | int) -> bool:
    """False for the names of union members, which pydantic mixes into the place of a problem."""
    return not re.match(r"([A-Z]|constrained-|literal\[|list\[|dict\[|function-|(int|float|str|bool|none)$)", str(part))


def load_object(path: str) -> Any:
    """The Python object at `package.module:attribute`.

    Raises `ValueError` that says which part is wrong. Importing runs the module's code: name only your own.
    """
    module, colon, attribute = path.partition(":")
    if not colon or not attribute:
        raise ValueError(f"{path!r} is not a dotted path; write package.module:name")
    try:
        return pkgutil.resolve_name(path)
    except ModuleNotFoundError as error:
        raise ValueError(f"cannot import {error.name!r} for {path!r}; is it installed or on PYTHONPATH?") from error
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path!r}: {error}") from error


def call(factory: Callable, args: Mapping[str, Any] | None, source: Source, key: Key) -> Any:
    """factory(**args) with types and ranges checked against its signature; problems name the place."""
    if args is not None and not isinstance(args, Mapping):
        raise ConfigError([source.problem(key, f"takes a mapping of its arguments, but it is {args!r}")])
    hints = typing.get_type_hints(factory, include_extras=True)

    def names(place: Key) -> list[str]:
        return names_at(hints.get(place[0]), place[1:]) if place else list(inspect.signature(factory).parameters)

    try:
        return validate_call(factory)(**(args or {}))
    except ValidationError as error:
        raise ConfigError(explain(error, source, key, names)) from error
    except ValueError as error:
        raise ConfigError([source.problem(key, str(error))]) from error
