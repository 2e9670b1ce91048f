"""Take a run's folder: lock it, find what the run goes on from, move an earlier run out of the way, say whose it is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from align.checkpoint import identity, resume
from align.checkpoint.agreement import Part
from align.checkpoint.checkpoint import CheckpointError
from align.checkpoint.provenance import resolved, versions
from align.checkpoint.resume import Origin
from align.config.experiment import Experiment
from align.run.log import GREEDY, LINES, METRICS, check_lines, describe
from align.run.terminal import say
from align.system import files, lock
from align.system.files import DiskError
from align.system.lock import HeldError
from align.system.node import Node, of_main

RESULTS = (*LINES, "adapter", "model")  # with checkpoints and rollouts, what shows that a run got to do something


ERRORS = (CheckpointError, HeldError, DiskError)


def take(experiment: Experiment, node: Node, held: ExitStack) -> Origin:
    """Return the origin that the main process finds, on all ranks; the folder stays locked until `held` closes.

    Where each node has a folder of its own all of them are taken, and the origin is the newest checkpoint that is
    intact on all. A run that does not go on in place has its recipe written at once, so that nobody takes what it finds
    there for another's. Collective. Raises `CheckpointError`, `HeldError` and `DiskError` on all ranks.
    """
    run, out = experiment.recipe.run, Path(experiment.recipe.run.out)
    node.attempt(lambda: held.enter_context(lock.held(out)), *ERRORS)
    parts = None if node.alone or run.resume is None else resume.parts(run, node)
    origin = of_main(lambda: _origin(experiment, parts), *ERRORS)
    node.attempt(lambda: _make_room(experiment, origin, node, held), *ERRORS)
    return origin


def _origin(experiment: Experiment, parts: Mapping[str, Sequence[Part]] | None) -> Origin:
    """What the run goes on from; `parts` are those of the nodes where there are several."""
    run, out = experiment.recipe.run, Path(experiment.recipe.run.out)
    origin = resume.find(run) if parts is None else resume.find_on_all(run, parts)
    resume.changed(experiment, origin)
    if origin.in_place:
        for name in (METRICS, GREEDY):
            check_lines(out / name, origin.step)  # raises before anything is loaded
    return origin


def _make_room(experiment: Experiment, origin: Origin, node: Node, held: ExitStack) -> None:
    """Rename what an earlier run left in the folder, and write the recipe; nothing where the run goes on in place."""
    out = Path(experiment.recipe.run.out)
    if origin.in_place:
        return
    if used(out):
        moved = set_aside(out)
        say(f"{out} held an earlier run, which is now {moved}")
        held.enter_context(lock.held(out))  # the first lock went with it
    if node.ranks[0] == 0:
        changes = resume.changed(experiment, origin)
        describe(out, resolved(resume.starting_at(experiment, origin)), versions(), noted(origin, changes, out))


def used(out: Path) -> bool:
    """Whether a run did something in a folder. One that was stopped before its first evaluation did not."""
    steps = any(files.numbered(out / name) for name in ("checkpoints", "rollouts"))
    return steps or any((out / name).exists() for name in RESULTS)


def set_aside(out: Path) -> Path:
    """Rename the folder of an earlier run; its new name. Raises `CheckpointError` where that is not possible."""
    out = out.absolute()
    free = next(path for n in itertools.count(1) if not (path := out.with_name(f"{out.name}.{n}")).exists())
    if Path.cwd().is_relative_to(out.resolve()):
        why = "this command runs inside it"
    else:
        try:
            return out.rename(free)
        except OSError as error:
            why = error.strerror
    raise CheckpointError(f"run.out: {out} holds an earlier run and cannot be renamed: {why}; name another folder")


def noted(origin: Origin, changes: list[identity.Change], out: Path) -> list[str]:
    """The lines of config.yaml about changes of the recipe on the way to this run."""
    return identity.history(out if origin.in_place else origin.folder or out, origin.step, changes)
