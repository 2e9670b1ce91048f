"""Read YAML with the line of every key, so that each problem can name the file, the line, the key and the fix."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from align.config import locations
from align.system.problems import ProblemList

KeyPath = tuple[str | int, ...]  # where a value stands: ("objective", "k")

MERGE = "tag:yaml.org,2002:merge"  # of the key <<

MOST, DEEPEST = 100_000, 50  # keys and values of a file; lists and mappings around one

HALF = re.compile("[\ud800-\udfff]")  # a surrogate, which no file and no terminal takes

OCTAL = re.compile(r"[-+]?0[\d_]+")  # 010 is 8 in YAML 1.1 and 10 in YAML 1.2

NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")  # in YAML 1.1 1:30 is one, of 90


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

    @property
    def folder(self) -> str:
        """The folder of the file; empty where it is the working directory."""
        return os.path.dirname(self.name)

    def texts(self) -> Iterator[tuple[KeyPath, str]]:
        """(its place, text) of every name and every value that is text."""
        return _texts(self.data, ())

    def objective_key(self, number: int) -> KeyPath:
        """The place of an objective, counted from 0."""
        return ("objective",) if self.data.get("objectives") is None else ("objectives", number)

    def problem(self, key: KeyPath, what: str) -> str:
        """Return `file:line: key: what`, with the line of the nearest enclosing key that has one."""
        known = next((key[:n] for n in range(len(key), 0, -1) if key[:n] in self.places), None)
        where = self.places[known] if known else self.name
        return f"{where}: {'.'.join(map(str, key))}: {what}"


def read(path: str | Path, overrides: Iterable[str] = ()) -> RecipeFile:
    """Read a YAML file and apply `key=value` overrides. Raises `ConfigError` and `FileNotFoundError`.

    Paths are those that `locations` finds.
    """
    path = Path(path)
    try:
        data, places = _parse(path.read_text(encoding="utf-8"), (), lambda line: f"{path}:{line}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid YAML: {error}"]) from error
    if not isinstance(data, dict):
        raise ConfigError([f"{path}: must be a mapping with keys such as model, data, objective"])
    file = RecipeFile(data, places, str(path))
    collect(overrides, lambda override: _override(file, override))
    file.data = locations.with_paths(file.data, file.folder)
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


def _texts(value: Any, key: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        yield from (((*key, name), name) for name in value if isinstance(name, str))
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in inside:
        yield from _texts(inner, (*key, name))


def _parse(text: str, key: KeyPath, place: Callable[[int], str]) -> tuple[Any, dict[KeyPath, str]]:
    """(the value of a YAML text, the place of every key in it); `key` is where the text stands.

    `place` puts a line into words. Raises `ConfigError`, and `YAMLError` for what is no YAML.
    """
    loader = Loader(text)
    try:
        node = loader.get_single_node()
    except RecursionError as error:
        raise yaml.YAMLError("lists and mappings stand in each other too deeply") from error
    if node is None:
        return None, {}
    marker = _Marker(loader, place)
    marker.mark(node, key)
    return loader.construct_document(node), marker.places


class _Marker:
    """Notes the place of every key, and refuses what would be read otherwise than it was meant."""

    def __init__(self, loader: Loader, place: Callable[[int], str]):
        self.places: dict[KeyPath, str] = {}
        self._loader, self._place, self._seen = loader, place, 0

    def mark(self, node: yaml.Node, key: KeyPath, above: tuple[yaml.Node, ...] = ()) -> None:
        """Note the keys below `node`, which stands at `key`, below the nodes `above`. Raises `ConfigError`."""
        self._seen += 1
        what = _flaw(self._loader, node, above)
        if what is None and self._seen > MOST:
            what = f"there are more than {MOST} keys and values; do aliases multiply them?"
        if what:
            raise ConfigError([f"{self._at(node)}: {_dotted(key)}{what}"])
        if isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                self.places[(*key, i)] = self._at(value)
                self.mark(value, (*key, i), (*above, node))
        elif isinstance(node, yaml.MappingNode):
            self._mark_mapping(node, key, (*above, node))

    def _mark_mapping(self, node: yaml.MappingNode, key: KeyPath, above: tuple[yaml.Node, ...]) -> None:
        """Note a mapping's own keys, then those that `<<` brings along; an own key comes before one of these."""
        own = [(name, value) for name, value in node.value if name.tag != MERGE]
        for name, value in own:
            self.mark(name, key, above)
            child = (*key, str(name.value))
            if child in self.places:
                raise ConfigError([f"{self._at(name)}: {_dotted(child)}stands twice; keep one"])
            self.places[child] = self._at(name)
            self.mark(value, child, above)
        places = self.places
        for value in (value for name, value in node.value if name.tag == MERGE):
            for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                self.places = {}
                self.mark(part, key, above)
                places = self.places | places
        self.places = places

    def _at(self, node: yaml.Node) -> str:
        return self._place(node.start_mark.line + 1)


def _flaw(loader: Loader, node: yaml.Node, above: tuple[yaml.Node, ...]) -> str | None:
    """Say what a value would be read as that nobody means; None where nothing is wrong."""
    if node in above:
        return "holds itself, by its anchor; write it out"
    if len(above) > DEEPEST:
        return f"stands more than {DEEPEST} lists and mappings deep"
    if not isinstance(node, yaml.ScalarNode):
        return None
    if HALF.search(node.value):
        return f"{node.value!r} holds half a character; write the whole one"
    if node.style is None and (OCTAL.fullmatch(node.value) or ":" in node.value and node.tag in NUMBERS):
        return f"{node.value} is another number in YAML 1.1, by eights or sixties; write the number, or quote the text"
    large = f"{node.value[:40]} is larger than 64 bits hold; write less"
    try:
        value = loader.construct_object(node)
    except (ValueError, LookupError, AttributeError) as error:  # a date that is none, a tag that does not fit
        if node.tag in NUMBERS and node.value.lstrip("+-").isdecimal():  # more digits than Python reads
            return large
        why = error if isinstance(error, ValueError) else f"it is no {node.tag.rpartition(':')[2]}"
        return f"{node.value[:40]!r} cannot be read: {why}"
    return large if isinstance(value, int) and abs(value) >= 2**63 else None


def _dotted(key: KeyPath) -> str:
    return f"{'.'.join(map(str, key))}: " if key else ""


def _override(file: RecipeFile, override: str) -> None:
    """Apply one `key=value`. Raises `ConfigError` where it names no key or gives no YAML value."""
    name, equals, text = override.partition("=")
    if not equals or not all(name.split(".")) or HALF.search(name):
        raise ConfigError([f"command line: {override!r}: write key=value, for example run.steps=10"])
    here, rest, whole = file.data, name, ()
    while True:
        part, rest = _next_key(here, rest, name)
        whole = (*whole, part)
        if not rest:
            break
        if isinstance(here, dict) and here.get(part) is None:
            here[part] = {}
        if not isinstance(here[part], (dict, list)):
            raise ConfigError([f"command line: {name}: {part!r} is not a section"])
        here[part] = copy(here[part])  # an alias may stand for the same section elsewhere
        here = here[part]
    try:
        here[part], places = _parse(text, whole, lambda line: "command line")
    except yaml.YAMLError as error:
        raise ConfigError([f"command line: {name}: not a YAML value: {text[:200]!r}"]) from error
    for key in [key for key in file.places if key[: len(whole)] == whole]:
        del file.places[key]  # what stood there before is gone
    file.places.update(places)
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
