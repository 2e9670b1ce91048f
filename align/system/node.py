"""Which processes of a run see the same files: those of one machine, or of several that share a folder."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

T = TypeVar("T")


@dataclass(frozen=True)
class Node:
    """The processes that see the run's folder as this one does; the first of them writes what is there once."""

    ranks: tuple[int, ...] = (0,)
    writes: bool = True  # whether this process is the first of them
    alone: bool = True  # whether all processes of the run are among them
    host: str = ""  # of its first rank

    def attempt(self, step: Callable[[], T], *errors: type[Exception]) -> T | None:
        """Run a step on the process that writes, and wait for those of the other nodes. Collective.

        Where it raises one of the errors on a node, all raise the first of them; it names the node where there are
        several. Other processes get None.
        """
        found, error = None, None
        if self.writes:
            try:
                found = step()
            except errors as raised:
                error = raised if self.alone else type(raised)(f"{self.name}: {raised}")
        if raised := next((one for one in gather_object([error]) if one is not None), None):
            raise raised
        return found

    @property
    def name(self) -> str:
        """The node as messages name it."""
        return f"{self.host} ({said(self.ranks)})"


def said(ranks: tuple[int, ...]) -> str:
    """Ranks in words: `rank 3`, `ranks 0 to 7`, `ranks 0, 2`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    whole = ranks == tuple(range(ranks[0], ranks[-1] + 1))
    return f"ranks {ranks[0]} to {ranks[-1]}" if whole else f"ranks {', '.join(map(str, ranks))}"


def machines() -> int:
    """Number of machines that the launcher started this run on."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def machine_of() -> str:
    """This machine as messages name it: its name, and the ranks that the launcher started on it."""
    size, first = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    first -= int(os.environ.get("LOCAL_RANK", "0"))
    return f"{platform.node()} ({said(tuple(range(first, first + size)))})"


def of_main(make: Callable[[], T], *errors: type[Exception]) -> T:
    """Return what a function gives on the main process, on all; one of these errors is raised on all. Collective."""
    found = None
    if PartialState().is_main_process:
        try:
            found = make()
        except errors as error:
            found = error
    found = gather_object([found])[0]
    if isinstance(found, errors):
        raise found
    return found


def find(folder: Path) -> Node:
    """Find who sees a folder, or the nearest one above it that is there, as this process does. Collective.

    Each process puts a file there under a name that nobody has asked for yet (a network's file system may remember for
    a while that a name was not there) and looks for those of the others. Raises `OSError` where it cannot write.
    """
    state = PartialState()
    ranks, me = range(state.num_processes), state.process_index
    if machines() == 1:
        return of_ranks(me, [tuple(ranks)] * len(ranks), [platform.node()] * len(ranks))
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    token = gather_object([secrets.token_hex(8)])[0]
    own = there / f".align-{token}-{me}"
    try:
        own.touch()
        hosts = gather_object([platform.node()])  # all are there
        seen = tuple(rank for rank in ranks if (there / f".align-{token}-{rank}").exists())
        everyone = gather_object([seen])
    finally:
        own.unlink(missing_ok=True)
    return of_ranks(me, everyone, hosts)


def of_ranks(rank: int, seen: list[tuple[int, ...]], hosts: list[str]) -> Node:
    """The node of a rank, from the ranks whose files each of them sees, and the name of each one's machine."""
    mine = tuple(other for other in seen[rank] if rank in seen[other])
    return Node(mine, mine[0] == rank, len(mine) == len(seen), hosts[mine[0]])
