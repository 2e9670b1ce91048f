"""`python -m align objectives`: describe objectives, transforms and losses by their signatures and docstrings."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from align.config.factories import load_object, unfit
from align.config.locations import import_from
from align.config.problems import nearest
from align.losses.loss import Loss
from align.objectives.objective import Objective
from align.registry import LOSSES, OBJECTIVES, TRANSFORMS
from align.transforms.transform import Transform

EVERYTHING = {**OBJECTIVES, **TRANSFORMS, **LOSSES}

SIGNS = {"Ge": ">=", "Gt": ">", "Le": "<=", "Lt": "<"}


@dataclass(frozen=True)
class Argument:
    """An argument of a factory, which is a key of YAML."""

    name: str
    kind: str  # its type and range
    default: str  # "needed" where it has none


@dataclass(frozen=True)
class Entry:
    """An objective, a transform or a loss, as its docstring and signature describe it."""

    name: str
    summary: str
    paper: str  # empty where the docstring names none, as for transforms and losses
    limit: str  # the setting at which it equals its baseline; likewise
    text: str  # the whole docstring
    arguments: list[Argument]
    source: str  # module and line
    parts: dict[str, str]  # {what: names}: of an objective its chain and its losses; of a piece what it reads and gives


def entry(name: str) -> Entry:
    """Describe what is called so in YAML: a name of the registry, or the dotted path of a function of one's own.

    Raises `ValueError` for an unknown name, and for a function that makes nothing of the kind.
    """
    factory = EVERYTHING.get(name) or _own(name)
    text = inspect.getdoc(factory) or ""
    lines = text.splitlines() or [""]

    def marked(mark: str) -> str:
        """The rest of the line that begins with a mark."""
        return next((line.removeprefix(mark).strip() for line in lines if line.startswith(mark)), "")

    line = inspect.unwrap(factory).__code__.co_firstlineno
    source = f"{factory.__module__.replace('.', '/')}.py, line {line}"
    return Entry(name, lines[0], marked("Paper:"), marked("Limit:"), text, arguments(factory), source, parts(factory))


def show(name: str | None, console: Console) -> None:
    """Print the list of objectives, or the page of one objective, transform or loss. Raises `ValueError` as `entry`."""
    if name is None:
        shown = Table("objective", "what it is", "paper", "where it is its baseline")
        for found in map(entry, OBJECTIVES):
            shown.add_row(*map(Text, (found.name, found.summary, found.paper, found.limit)))
        more = {"transforms": TRANSFORMS, "losses": LOSSES}
        console.print(shown, *(Text(f"{kind}: {', '.join(names)}") for kind, names in more.items()), sep="\n")
        return
    found = entry(name)
    shown = Table("key", "type and range", "default")
    for key in found.arguments:
        shown.add_row(*map(Text, (key.name, key.kind, key.default)))
    named = {**found.parts, "source": found.source}
    console.print(Text(flowing(found.text)), *([shown] if found.arguments else ["takes no keys"]))
    console.print(*(Text(f"{what}: {names}") for what, names in named.items()), sep="\n")


def flowing(text: str) -> str:
    """A docstring with each paragraph on one line, which a terminal wraps; `Paper:` and `Limit:` begin their own."""
    return re.sub(r"(?<=\S)\n(?=\S)(?!Paper:|Limit:)", " ", text)


def parts(factory: Callable) -> dict[str, str]:
    """What a factory makes of its defaults, and of the least values where it has none; {} where it makes nothing of
    these."""
    try:
        hints = typing.get_type_hints(factory, include_extras=True)
        needed = [p.name for p in inspect.signature(factory).parameters.values() if p.default is p.empty]
        made = factory(**{name: least(hints[name]) for name in needed})
    except Exception:  # of the user's function, which may want other values
        return {}
    if isinstance(made, Objective):
        chain, losses = (", ".join(piece.name for piece in pieces) for pieces in (made.chain, made.losses))
        given = {name for transform in made.chain for name in transform.gives}
        return {"chain": chain or "none", "losses": losses, "reads": ", ".join(sorted(made.needs - given))}
    reads = dict.fromkeys((*made.needs, *getattr(made, "reads_current", ())))
    out = {"reads": ", ".join(reads) or "tokens alone"}
    if isinstance(made, Loss):
        return out | {"counts": made.unit}
    stage = made.stage.name.lower() if made.stage is not None else "anywhere in a chain"
    return out | ({"gives": ", ".join(made.gives)} if made.gives else {}) | {"stage": stage}


def least(hint: Any) -> Any:
    """A small value that a type takes: its lower bound, or 1."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        bounds = [vars_of(bound) for bound in inside[1:] if type(bound).__name__ == "Ge"]
        return max(bounds) if bounds and max(bounds) > 0 else least(inside[0])
    if origin in (typing.Union, types.UnionType):
        return least(inside[0])
    return inside[0] if origin is typing.Literal else hint(1)


def _own(path: str) -> Callable:
    """The function at a dotted path. Raises `ValueError`."""
    if ":" not in path:
        raise ValueError(f"no objective, transform or loss {path!r}; {nearest(path, EVERYTHING)}")
    import_from("")
    factory = load_object(path)
    if what := unfit(factory, (Objective, Transform, Loss)):
        raise ValueError(f"{path} {what}")
    return factory


def arguments(factory: Callable) -> list[Argument]:
    """The arguments of a factory, in their order."""
    hints = typing.get_type_hints(factory, include_extras=True)
    return [
        Argument(p.name, kind(hints.get(p.name, Any)), "needed" if p.default is p.empty else str(p.default))
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
