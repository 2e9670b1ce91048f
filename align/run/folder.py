"""Take a run's folder: lock it, find what the run goes on from, move an earlier run out of the way, say whose it is."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from align.checkpoint import identity, resume
from align.checkpoint.checkpoint import CheckpointError
from align.checkpoint.provenance import resolved, versions
from align.checkpoint.resume import Origin
from align.config.experiment import Experiment
from align.run.log import GREEDY, LINES, METRICS, check_lines, describe
from align.run.terminal import say
from align.system import files, lock
from align.system.files import DiskError
from align.system.lock import HeldError

RESULTS = (*LINES, "adapter", "model")  # with checkpoints and rollouts, what shows that a run got to do something


def take(experiment: Experiment, accelerator: Accelerator, held: ExitStack) -> Origin:
    """Return the origin that the main process finds, on all ranks; the folder stays locked until `held` closes.

    A run that does not go on in place has its recipe written at once, so that nobody takes what it finds there for
    another's. Collective. Raises `CheckpointError`, `HeldError` and `DiskError` on all ranks.
    """
    found = None
    if accelerator.is_main_process:
        try:
            found = _take(experiment, held)
        except (CheckpointError, HeldError, DiskError) as error:
            found = error
    found = gather_object([found])[0]
    if isinstance(found, Exception):
        raise found
    return found


def _take(experiment: Experiment, held: ExitStack) -> Origin:
    out = Path(experiment.recipe.run.out)
    held.enter_context(lock.held(out))
    origin = resume.find(experiment.recipe.run)
    changes = resume.changed(experiment, origin)
    if origin.in_place:
        for name in (METRICS, GREEDY):
            check_lines(out / name, origin.step)  # raises before anything is loaded
        return origin
    if used(out):
        moved = set_aside(out)
        say(f"{out} held an earlier run, which is now {moved}")
        held.enter_context(lock.held(out))  # the first lock went with it
    describe(out, resolved(resume.starting_at(experiment, origin)), versions(), noted(origin, changes, out))
    return origin


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
