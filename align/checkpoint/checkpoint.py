"""Write and read checkpoints: the learner's state, and everything else that the next step depends on."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from align.learner.learner import Learner
from align.objectives.objective import Objective
from align.system import files

SUMS = "SHA256SUMS"  # of the other files, as sha256sum writes and checks them


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or not resumed from."""


@dataclass(frozen=True)
class State:
    """A checkpoint's content besides the learner."""

    step: int  # number of steps done, which is also the position in the data
    transforms: list[dict[str, Any]]  # of each transform that has a state, in the order of the chains
    processes: int
    lineage: list[tuple[int, str]]  # (step, fingerprint of the recipe that is followed from there on)

    def to_json(self) -> str:
        """The state as it is written; the file has called the transforms `links` since its first version."""
        names = {"step": self.step, "links": self.transforms, "processes": self.processes, "lineage": self.lineage}
        return json.dumps(names)


def save(folder: Path, learner: Learner, state: State) -> None:
    """Write `folder/step_N`; it appears under its name only when it is whole and on the disk.

    Raises `CheckpointError` on all ranks where one of them cannot write; the checkpoints before it stay.
    """
    main = learner.accelerator.is_main_process
    work, final = folder / f".step_{state.step}", folder / f"step_{state.step}"
    with _all_or_none(work, learner.accelerator):
        if main:
            _begin(work)
    with _all_or_none(work, learner.accelerator):
        learner.save(work / "engine")
    with _all_or_none(work, learner.accelerator):
        if main:
            _complete(work, final, state)


def read(folder: Path) -> State:
    """Read the state of an intact checkpoint."""
    state = json.loads((folder / "state.json").read_text())
    lineage = [tuple(entry) for entry in state["lineage"]]
    return State(state["step"], state["links"], state["processes"], lineage)


def load(folder: Path, learner: Learner, objectives: tuple[Objective, ...]) -> None:
    """Restore the learner, and the states of transforms. Collective.

    Raises `CheckpointError` where the checkpoint has another number of processes or another objective.
    """
    state, processes = read(folder), learner.accelerator.num_processes
    if state.processes != processes:
        raise CheckpointError(
            f"run.resume: {folder} was written by {state.processes} processes and this run has {processes};"
            " launch as many"
        )
    transforms = [transform for objective in objectives for transform in objective.chain if transform.state]
    if len(transforms) != len(state.transforms):
        raise CheckpointError(f"run.resume: {folder} was written with another objective; resume with the same recipe")
    for transform, saved in zip(transforms, state.transforms, strict=True):
        transform.state.load_state_dict(saved)
    learner.load(folder / "engine")


def state_at(step: int, learner: Learner, objectives: tuple[Objective, ...], lineage: list[tuple[int, str]]) -> State:
    """The state to save after `step` steps."""
    transforms = [
        transform.state.state_dict() for objective in objectives for transform in objective.chain if transform.state
    ]
    return State(step, transforms, learner.accelerator.num_processes, lineage)


def tidy(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and whatever a killed run was writing or removing."""
    for old in newest_first(folder)[keep:]:
        old.rename(old.with_name(f".{old.name}"))  # so that a part of it does not bear its name
    for part in folder.glob(".step_*"):
        shutil.rmtree(part)


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first, damaged ones among them."""
    numbered = [path for path in folder.glob("step_*") if path.name.removeprefix("step_").isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def is_one(path: Path) -> bool:
    """Whether a path is one checkpoint, and not a run's folder."""
    return any((path / name).exists() for name in ("state.json", "engine", SUMS))


def damage(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint; None where every file is as it was written."""
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return f"{folder}: has no list of checksums that can be read ({SUMS})"
    wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if "state.json" not in wanted:  # the last line
        return f"{folder}: its list of checksums is cut ({SUMS})"
    found = files.digests(folder)
    for name, digest in wanted.items():
        if found.get(name) != digest:
            return f"{folder}: {name} is {'not as it was written' if name in found else 'missing'}"
    return None


def set_later_aside(folder: Path, step: int) -> None:
    """Rename the checkpoints behind a step: the run that goes on from there will write its own."""
    for path in newest_first(folder):
        if int(path.name.removeprefix("step_")) > step:
            free = next(n for n in itertools.count(1) if not path.with_name(f"replaced_{n}_{path.name}").exists())
            path.rename(path.with_name(f"replaced_{free}_{path.name}"))


@contextmanager
def _all_or_none(work: Path, accelerator: Accelerator) -> Iterator[None]:
    """Wait for all ranks behind the block. Where one could not write, remove the folder and raise on all.

    Raises `CheckpointError`.
    """
    problem = None
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        problem = str(error).partition("\n")[0]
    problems = [problem for problem in gather_object([problem]) if problem is not None]
    if problems:
        if accelerator.is_main_process:
            shutil.rmtree(work, ignore_errors=True)
        free = shutil.disk_usage(next(folder for folder in work.parents if folder.exists())).free / 2**30
        raise CheckpointError(
            f"{work.with_name(work.name[1:])}: cannot be written: {problems[0]} ({free:.2f} GiB are free there)."
            " The checkpoint before it is whole: make room, then go on with --resume"
        )


def _begin(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    (work / "engine").mkdir(parents=True)


def _complete(work: Path, final: Path, state: State) -> None:
    (work / "state.json").write_text(state.to_json())
    sums = "".join(f"{digest}  {name}\n" for name, digest in files.digests(work).items())
    (work / SUMS).write_text(sums)
    for path in (*work.rglob("*"), work):
        files.to_disk(path)
    shutil.rmtree(final, ignore_errors=True)
    work.rename(final)
    files.to_disk(final.parent)
