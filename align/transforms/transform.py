"""What a link of a chain is: it takes the batch and returns it with rows or tokens taken out, or credit added.

A link is pure: no gradient, no I/O, no rank; every rank applies it to the whole batch and gets the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from align.batch import Batch


class State(Protocol):
    """What a link remembers from step to step; saved in the checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Stage(IntEnum):
    """The order of links. Group statistics are those of the kept rows; rows are chosen by their own advantage,
    before a token's part is added; tokens are chosen by all of their credit."""

    FILTER = 0
    PAIRS = 1
    REWARD = 2
    ADVANTAGE = 3
    SIGN = 4
    ROWS = 5
    TOKEN_CREDIT = 6
    TOKENS = 7
    WEIGHT = 8


@dataclass(frozen=True)
class Transform:
    """A link: what it does, the quantities that it reads, and the one that it brings.

    `stage` is its place among other links; None may stand anywhere.
    """

    name: str
    apply: Callable[[Batch], Batch]
    needs: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    stage: Stage | None = None
    state: State | None = None
    compares: bool = False  # looks at the rows of a group side by side: one row alone would learn nothing
    check: Callable[[int], None] = lambda group_size: None  # raises ValueError where the group size cannot work
