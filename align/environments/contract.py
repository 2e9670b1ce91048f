"""What travels between an episode and its environment, the same for both contracts: requests, answers, and limits.

Requests are pickled by the trainer; answers are JSON, since the memory of their process belongs to user code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, TypeAdapter
from pydantic_core import from_json

from align.system.failure import LARGEST, Failure

MOST_TEXT = 2**20  # characters of what an environment says at once; the budget of tokens cuts long before

MOST_INFO = 2**16  # characters of JSON that are kept of an info, and of the attributes

LONGEST_ANSWER = 8 * MOST_TEXT  # bytes; a character takes up to 6 in JSON

Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]

Kind = Literal["tools", "text"]


@dataclass(frozen=True)
class Environment:
    """A user's environment: the class, or what makes an instance, at a dotted path, and the arguments to make it with.

    `contract` is only needed where it cannot be seen: an object with a method `step` follows the contract of text.
    """

    name: str
    path: str  # package.module:attribute
    args: Mapping[str, Any] = field(default_factory=dict)
    contract: Kind | None = None


@dataclass(frozen=True)
class Limits:
    """What one call of an instance may take."""

    seconds: float = 10.0
    memory_gib: float = 1.0  # of the address space of each instance's process
    at_once: int = 16  # instances that work side by side


# ---- requests


@dataclass(frozen=True)
class Build:
    """Asks for the instance to be made."""


@dataclass(frozen=True)
class Describe:
    """Asks what the environment offers."""


@dataclass(frozen=True)
class Start:
    """Starts an episode: `reset(**row)`, with Python's and NumPy's global random state set from the seed before it."""

    row: Mapping[str, Any]
    seed: int


@dataclass(frozen=True)
class Call:
    """A tool call as it was parsed; `arguments` is whatever the model wrote there."""

    name: str
    arguments: Any
    kind: str = "function"


@dataclass(frozen=True)
class Reply:
    """What the policy said in a turn: its text, and the calls in it."""

    text: str
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Finish:
    """Ends an episode, however it ended, and asks what it is worth."""


Request = Build | Describe | Start | Reply | Finish

# ---- answers


@dataclass(frozen=True)
class Loaded:
    """Tells the trainer that the environment's module is imported."""

    seconds: float


@dataclass(frozen=True)
class Built:
    """Tells the trainer that the instance is made."""

    seconds: float


@dataclass(frozen=True)
class Description:
    """What an environment offers."""

    name: str  # of its class, as TRL names its reward
    contract: Kind
    tools: list[dict[str, JsonValue]]  # JSON schemas, in the order in which they stand in the prompt
    scores: bool  # whether `Finish` gives a reward


@dataclass(frozen=True)
class Opening:
    """What an episode begins with: the text goes behind the last user message."""

    text: str
    info: dict[str, JsonValue] = field(default_factory=dict)
    anchor: str | None = None  # `info["anchor"]`: the name of the state, for credit of turns that begin in the same


@dataclass(frozen=True)
class Message:
    """What the environment says: as a tool, or as the user."""

    role: Literal["tool", "user"]
    content: str
    name: str | None = None  # of the tool


@dataclass(frozen=True)
class Observation:
    """What a turn led to."""

    messages: list[Message]
    ended: Literal["terminated", "truncated"] | None
    reward: Number | None = None  # of this turn
    success: bool | None = None  # `info["success"]`
    info: dict[str, JsonValue] = field(default_factory=dict)
    anchor: str | None = None  # as in `Opening`, of the state that the turn led to
    calls: int = 0
    failed_calls: int = 0  # those whose message is an error


@dataclass(frozen=True)
class Outcome:
    """What an episode was worth."""

    attributes: dict[str, JsonValue]  # public ones of the instance that are plain data
    reward: Number | None = None


Answer = Built | Description | Opening | Observation | Outcome

LOADED = TypeAdapter(Loaded | Failure)

ANSWERS = {
    Build: TypeAdapter(Built | Failure),
    Describe: TypeAdapter(Description | Failure),
    Start: TypeAdapter(Opening | Failure),
    Reply: TypeAdapter(Observation | Failure),
    Finish: TypeAdapter(Outcome | Failure),
}


def said(text: str) -> str:
    """A text as it travels, in UTF-8. Raises `ValueError` where it is longer than `MOST_TEXT`."""
    if len(text) > MOST_TEXT:
        raise ValueError(f"returned a text of {len(text)} characters; at most {MOST_TEXT} can be read")
    return text.encode(errors="replace").decode()


def plain(values: Mapping[Any, Any]) -> dict[str, JsonValue]:
    """The values that JSON can hold, in their order, as far as they fit into `MOST_INFO`; the others are left out."""
    out, left = {}, MOST_INFO
    for name, value in values.items():
        try:
            text = said(json.dumps(value, allow_nan=False, ensure_ascii=False, default=_item))
            read = from_json(f"[[[{text}]]]")[0][0][0]  # as deep as the trainer will read it
        except (TypeError, ValueError, RecursionError):
            continue
        if isinstance(name, str) and len(text) <= left:
            left -= len(text)
            out[said(name)] = read
    return out


def _item(value: Any) -> Any:
    """A number of NumPy as Python's. Raises `TypeError` for all else."""
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"{type(value).__name__} is not plain")
