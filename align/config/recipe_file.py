"""Read YAML with the line of every key, so that each problem can name the file, the line, the key and the fix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from align.system.problems import ProblemList

KeyPath = tuple[str | int, ...]  # where a value stands: ("objective", "k")


class Loader(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 does: 1e-4 is one."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class ConfigError(ProblemList):
    """Something in a recipe or a launch file would not run."""


@dataclass
class RecipeFile:
    """A parsed YAML file: plain data, and the line of every key."""

    data: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)  # `file:line`, or `command line`
    name: str = "recipe"
    keys: list[str] = field(default_factory=list)  # every valid `section.key`, to say where a misplaced one belongs

    def problem(self, key: KeyPath, what: str) -> str:
        """Return `file:line: key: what`, with the line of the nearest enclosing key that has one."""
        known = next((key[:n] for n in range(len(key), 0, -1) if key[:n] in self.places), None)
        where = self.places[known] if known else self.name
        return f"{where}: {'.'.join(map(str, key))}: {what}"


def read(path: str | Path, overrides: Iterable[str] = ()) -> RecipeFile:
    """Read a YAML file and apply `key=value` overrides. Raises `ConfigError` and `FileNotFoundError`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=Loader)
        data = yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid YAML: {error}"]) from error
    if not isinstance(data, dict):
        raise ConfigError([f"{path}: a recipe is a mapping with keys such as model, data, objective"])
    file = RecipeFile(data, name=str(path))
    _mark(node, (), file)
    collect(overrides, lambda override: _override(file, override))
    return file


def collect(items: Iterable, step: Callable) -> tuple:
    """Return step(item) of each item. Raises one `ConfigError` with the problems of all."""
    problems, out = [], []
    for item in items:
        try:
            out.append(step(item))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return tuple(out)


def _mark(node: yaml.Node, key: KeyPath, file: RecipeFile) -> None:
    """Note the line of every key below `node`. Raises `ConfigError` for a key that stands twice."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            child = (*key, name.value)
            place = f"{file.name}:{name.start_mark.line + 1}"
            if child in file.places:
                raise ConfigError([f"{place}: {'.'.join(map(str, child))}: stands twice; keep one"])
            file.places[child] = place
            _mark(value, child, file)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            file.places[(*key, i)] = f"{file.name}:{value.start_mark.line + 1}"
            _mark(value, (*key, i), file)


def _override(file: RecipeFile, override: str) -> None:
    """Apply one `key=value`. Raises `ConfigError` where it names no key or gives no YAML value."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError([f"command line: {override!r}: write key=value, for example run.steps=10"])
    here, rest, whole = file.data, name, ()
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
    for key in [key for key in file.places if key[: len(whole)] == whole]:
        del file.places[key]  # what stood there before is gone
    for n in range(1, len(whole) + 1):
        file.places.setdefault(whole[:n], "command line")


def _next_key(here: dict | list, rest: str, name: str) -> tuple[str | int, str]:
    """(first key of the dotted `rest` below `here`, what is left of it). In a list the key is a number.

    Keys may hold dots themselves: the longest one that is there wins.
    """
    first, _, left = rest.partition(".")
    if isinstance(here, list):
        if not first.isdecimal() or int(first) >= len(here):
            raise ConfigError([f"command line: {name}: {first!r} must be a place in the list, below {len(here)}"])
        return int(first), left
    there = [key for key in here if isinstance(key, str) and f"{rest}.".startswith(f"{key}.")]
    key = max(there, key=len, default=first)
    return key, rest[len(key) + 1 :]
