"""The type of a transform: it returns a batch with rows or tokens taken out, or with credit added.

A transform is pure: no gradient, no I/O, no rank. Its scope says which rows it must see together: those of a group, and
each rank applies it to its own groups, or the whole batch, and every rank applies it to that with the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from align.batch import Batch
from align.ranges import Scope


class State(Protocol):
    """Memory of a transform from step to step; saved in the checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Stage(IntEnum):
    """The order of transforms in a chain.

    Rows are filtered before group statistics, which are those of the kept rows. Rows are chosen by their own
    advantage, before token credit is added; tokens are chosen by all of their credit.
    """

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
    """One step of a chain: its function, and the names of the batch's fields that it reads and sets.

    `stage` is its place among other transforms; None may stand anywhere.
    """

    name: str
    apply: Callable[[Batch], Batch]
    needs: tuple[str, ...] = ()  # fields of the batch
    gives: tuple[str, ...] = ()  # likewise
    stage: Stage | None = None
    state: State | None = None
    scope: Scope = "batch"  # always so with a state: all ranks remember the same
    compares: bool = False  # with the other rows of the group: a group of one row would learn nothing
    check: Callable[[int], None] = lambda group_size: None  # raises ValueError where the group size cannot work
