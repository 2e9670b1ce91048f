"""Write and read checkpoints: the learner's state, and everything else that the next step depends on."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from align.learner.learner import Learner
from align.objectives.objective import Objective
from align.system import files
from align.system.node import Node

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
    recipe: dict[str, Any] = field(default_factory=dict)  # `identity.followed`; {} before it was kept
    trained: dict[str, list[int]] = field(default_factory=dict)  # {parameter: its shape}; {} before it was kept
    zero_stage: int | None = None  # of DeepSpeed; None before it was kept
    ranks: list[int] | None = None  # whose parts are in this folder; None: those of all processes

    def to_json(self) -> str:
        """The state as it is written; the file has called the transforms `links` since its first version."""
        return json.dumps({"links" if name == "transforms" else name: value for name, value in vars(self).items()})


def save(folder: Path, learner: Learner, state: State, node: Node) -> None:
    """Write `folder/step_N`; it appears under its name only when it is whole and on the disk, on every node.

    Raises `CheckpointError` on all ranks where one of them cannot write; the checkpoints before it stay.
    """
    work, final = folder / f".step_{state.step}", folder / f"step_{state.step}"
    with _all_or_none(work, node):
        if node.writes:
            _begin(work)
    with _all_or_none(work, node):
        learner.save(work / "engine")
    with _all_or_none(work, node):
        if node.writes:
            _complete(work, state if node.alone else replace(state, ranks=list(node.ranks)))
    with _all_or_none(work, node):
        if node.writes:
            _name(work, final)


def read(folder: Path) -> State:
    """Read the state of an intact checkpoint. Raises `CheckpointError` where it is none of this library."""
    try:
        state = json.loads((folder / "state.json").read_text())
        lineage = [(step, fingerprint) for step, fingerprint in state.pop("lineage")]
        return State(transforms=state.pop("links"), lineage=lineage, **state)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"run.resume: {folder / 'state.json'}: is no state of a checkpoint: {error}") from error


def load(folder: Path, learner: Learner, objectives: tuple[Objective, ...]) -> None:
    """Restore the learner, and the states of transforms. Collective.

    Raises `CheckpointError` where the checkpoint has another number of processes, another ZeRO stage, other trained
    parameters or another objective.
    """
    state = read(folder)
    if problem := misfit(state, learner):
        raise CheckpointError(f"run.resume: {folder} does not fit: {problem}")
    transforms = [transform for objective in objectives for transform in objective.chain if transform.state]
    try:
        for transform, saved in zip(transforms, state.transforms, strict=True):
            transform.state.load_state_dict(saved)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{folder} was written with another objective; resume with the same recipe"
        raise CheckpointError(f"run.resume: {what}") from error
    settings = _settings(learner)
    try:
        learner.load(folder / "engine")
    except (RuntimeError, ValueError, KeyError) as error:  # of a checkpoint that does not say what it has
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"run.resume: {folder} does not fit the model or optimiser: {reason}") from error
    if any(before - now for before, now in zip(settings, _settings(learner), strict=True)):
        what = "was written with another optimiser; resume with the recipe that wrote it"
        raise CheckpointError(f"run.resume: {folder} {what}")


def misfit(state: State, learner: Learner) -> str | None:
    """Say what a checkpoint has otherwise than this run, and what to do; None where it fits."""
    processes, stage = learner.accelerator.num_processes, zero_stage(learner)
    if state.processes != processes:
        return f"it was written by {state.processes} processes and this run has {processes}; launch as many"
    if state.zero_stage not in (None, stage):
        return f"it was written with ZeRO stage {state.zero_stage} and this run has {stage}; use its launch file"
    now = trained(learner)
    if not state.trained or state.trained == now:
        return None
    every = sorted(state.trained.keys() | now.keys())
    other = [name for name in every if state.trained.get(name) != now.get(name)]
    first = f"{other[0]} has shape {state.trained.get(other[0], 'none')} there and {now.get(other[0], 'none')} here"
    return f"{len(other)} of {len(every)} trained parameters are others ({first}); resume with the recipe that wrote it"


def trained(learner: Learner) -> dict[str, list[int]]:
    """{name: whole shape} of all trained parameters; under ZeRO-3 a process holds a part of each."""
    named = learner.engine.module.named_parameters()
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in named if p.requires_grad}


def zero_stage(learner: Learner) -> int:
    """The ZeRO stage that the launcher chose; 0 for none."""
    return learner.engine.zero_optimization_stage()


def _settings(learner: Learner) -> list[set[str]]:
    """The names of what the optimiser is set to, of each group; loading replaces them by those of the checkpoint."""
    return [set(group) for group in learner.engine.optimizer.param_groups]


def state_at(
    step: int,
    learner: Learner,
    objectives: tuple[Objective, ...],
    lineage: list[tuple[int, str]],
    recipe: dict[str, Any],
) -> State:
    """The state to save after `step` steps of a recipe, as `identity.followed` has it."""
    transforms = [
        transform.state.state_dict() for objective in objectives for transform in objective.chain if transform.state
    ]
    processes, stage = learner.accelerator.num_processes, zero_stage(learner)
    return State(step, transforms, processes, lineage, recipe, trained(learner), stage)


def tidy(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and whatever a killed run was writing or removing."""
    for old in newest_first(folder)[keep:]:
        old.rename(old.with_name(f".{old.name}"))  # so that a part of it does not bear its name
    for part in filter(Path.is_dir, folder.glob(".step_*")):
        shutil.rmtree(part)


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first, damaged ones among them."""
    return list(files.numbered(folder).values())


def is_one(path: Path) -> bool:
    """Whether a path is one checkpoint, and not a run's folder."""
    return any((path / name).exists() for name in ("state.json", "engine", SUMS))


def damage(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint; None where every file is as it was written."""
    try:
        lines = (folder / SUMS).read_text().splitlines()
        found = files.digests(folder)
    except UnicodeDecodeError:
        return f"{folder}: has no list of checksums that can be read ({SUMS})"
    except OSError as error:
        what = f"{error.filename}: {error.strerror}"
        return f"{folder}: has no list of checksums, or files that cannot be read ({SUMS}): {what}"
    wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if "state.json" not in wanted:  # the last line
        return f"{folder}: its list of checksums is cut ({SUMS})"
    for name, digest in wanted.items():
        if found.get(name) != digest:
            return f"{folder}: {name} is {'not as it was written' if name in found else 'missing'}"
    return None


def set_later_aside(folder: Path, step: int) -> None:
    """Rename the checkpoints behind a step: the run that goes on from there will write its own."""
    for number, path in files.numbered(folder).items():
        if number > step:
            free = next(n for n in itertools.count(1) if not path.with_name(f"replaced_{n}_{path.name}").exists())
            path.rename(path.with_name(f"replaced_{free}_{path.name}"))


@contextmanager
def _all_or_none(work: Path, node: Node) -> Iterator[None]:
    """Wait for all ranks behind the block. Where one could not write, remove the folder and raise on all.

    Raises `CheckpointError`.
    """
    problem = None
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        free = shutil.disk_usage(next(folder for folder in work.parents if folder.exists())).free / 2**30
        where = "there" if node.alone else f"on {node.name}"
        problem = f"{str(error).partition(chr(10))[0]} ({free:.2f} GiB are free {where})"
    problems = [problem for problem in gather_object([problem]) if problem is not None]
    if problems:
        if node.writes:
            shutil.rmtree(work, ignore_errors=True)
        raise CheckpointError(
            f"{work.with_name(work.name[1:])}: cannot be written: {problems[0]}."
            " The checkpoint before it is whole: make room, then go on with --resume"
        )


def _begin(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    (work / "engine").mkdir(parents=True)


def _complete(work: Path, state: State) -> None:
    (work / "state.json").write_text(state.to_json())
    sums = "".join(f"{digest}  {name}\n" for name, digest in files.digests(work).items())
    (work / SUMS).write_text(sums)
    for path in (*work.rglob("*"), work):
        files.to_disk(path)


def _name(work: Path, final: Path) -> None:
    shutil.rmtree(final, ignore_errors=True)
    work.rename(final)
    files.to_disk(final.parent)
