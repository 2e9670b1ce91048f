"""`python -m align objectives`: describe objectives by the signatures and docstrings of their factories."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from align.registry import OBJECTIVES

SIGNS = {"Ge": ">=", "Gt": ">", "Le": "<=", "Lt": "<"}


@dataclass(frozen=True)
class Argument:
    """An argument of a factory, which is a key of YAML."""

    name: str
    kind: str  # its type and range
    default: str  # "needed" where it has none


@dataclass(frozen=True)
class Entry:
    """An objective, as its docstring and signature describe it."""

    name: str
    summary: str
    paper: str
    limit: str  # the setting at which it equals its baseline
    text: str  # the whole docstring
    arguments: list[Argument]


def entry(name: str) -> Entry:
    """Describe the objective of this name. Raises `KeyError` for an unknown one."""
    factory = OBJECTIVES[name]
    text = inspect.getdoc(factory)
    lines = text.splitlines()

    def marked(mark: str) -> str:
        """The rest of the line that begins with a mark."""
        return next(line.removeprefix(mark).strip() for line in lines if line.startswith(mark))

    return Entry(name, lines[0], marked("Paper:"), marked("Limit:"), text, arguments(factory))


def arguments(factory: Callable) -> list[Argument]:
    """The arguments of a factory, in their order."""
    hints = typing.get_type_hints(factory, include_extras=True)
    return [
        Argument(p.name, kind(hints[p.name]), "needed" if p.default is p.empty else str(p.default))
        for p in inspect.signature(factory).parameters.values()
    ]


def kind(hint: Any) -> str:
    """Put a type into words: `float >= 0 < 1`, `code | paper`, `{start: int >= 1, end: int >= 1}`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        ranges = [f"{SIGNS[type(r).__name__]} {vars_of(r)}" for r in parts[1:] if type(r).__name__ in SIGNS]
        return " ".join([kind(parts[0]), *ranges])
    if origin is typing.Literal:
        return " | ".join(map(str, parts))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(kind, parts))
    if origin is Callable:
        return "module:function"
    if origin in (tuple, list):
        return f"list of {kind(parts[0])}"
    if hint is types.NoneType:
        return "null"
    if inspect.isclass(hint) and issubclass(hint, BaseModel):
        fields = typing.get_type_hints(hint, include_extras=True)
        return "{" + ", ".join(f"{name}: {kind(fields[name])}" for name in hint.model_fields) + "}"
    return getattr(hint, "__name__", str(hint))


def vars_of(bound: Any) -> Any:
    """The number of an annotated_types bound."""
    return getattr(bound, type(bound).__name__.lower())
