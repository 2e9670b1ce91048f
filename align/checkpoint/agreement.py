"""Agree on the checkpoint that all nodes have: where no folder is shared each has its own part of every one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import gather_object

from align.checkpoint.checkpoint import CheckpointError, damage, newest_first, read
from align.system.node import Node, said


@dataclass(frozen=True)
class Part:
    """What a node has of a checkpoint."""

    step: int
    problem: str | None = None  # None: every file is as it was written
    lineage: tuple[tuple[int, str], ...] = ()  # of the run that wrote it


def part(folder: Path, node: Node) -> Part:
    """Look at a node's part of a checkpoint."""
    named = folder.name.removeprefix("step_")
    step = int(named) if named.isdecimal() else -1
    if problem := damage(folder):
        return Part(step, problem)
    try:
        state = read(folder)
    except CheckpointError as error:
        return Part(step, str(error))
    ranks = tuple(range(state.processes)) if state.ranks is None else tuple(state.ranks)
    if not set(node.ranks) <= set(ranks):
        what = f"{folder}: has the parts of {said(ranks)}, and here is {said(node.ranks)}"
        return Part(state.step, f"{what}; start each node with the machine_rank that it had, and as many processes")
    return Part(state.step, None, tuple(state.lineage))


def intact_on_all(nodes: Mapping[str, Iterable[Part]]) -> tuple[list[int], dict[int, str]]:
    """(steps whose checkpoint is intact on all nodes, newest first; {each other step: what is wrong with it}).

    `nodes` has the parts of each node, by its name. Parts of one step that different runs wrote are no checkpoint.
    """
    by_node = {name: {part.step: part for part in parts} for name, parts in nodes.items()}
    found = {step for parts in by_node.values() for step in parts}
    wrong = {step: _wrong(step, {name: parts.get(step) for name, parts in by_node.items()}) for step in found}
    newest = sorted(found, reverse=True)
    return [step for step in newest if not wrong[step]], {step: wrong[step] for step in newest if wrong[step]}


def _wrong(step: int, parts: Mapping[str, Part | None]) -> str:
    """What is wrong with a checkpoint, from each node's part of it; nothing where it is intact."""
    missing = [f"step_{step}: {name} has no part of it" for name, part in parts.items() if part is None]
    damaged = [f"{name}: {part.problem}" for name, part in parts.items() if part and part.problem]
    if missing or damaged:
        return "; ".join([*missing, *damaged])
    same = len({part.lineage for part in parts.values()}) == 1
    return "" if same else f"step_{step}: its parts on {' and '.join(parts)} are of different runs"


def held(folders: Iterable[Path], node: Node) -> dict[str, list[Part]]:
    """{node: its parts of the checkpoints in these folders}. Collective."""
    mine = [(node.name, [part(folder, node) for folder in folders])] if node.writes else []
    return dict(gather_object(mine))


def newest(folder: Path, node: Node, before: int) -> int | None:
    """The newest step up to `before` whose checkpoint in `folder` is intact on all nodes. Collective."""
    whole, _ = intact_on_all(held(newest_first(folder), node))
    return next((step for step in whole if step <= before), None)
