"""Checkpoints: the learner's state, and everything else that the next step depends on."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from align.learner import Learner
from align.objectives import Objective


class CheckpointError(ValueError):
    """A checkpoint that cannot be resumed from."""


def save(folder: Path, step: int, learner: Learner, objectives: tuple[Objective, ...]) -> None:
    """Write `folder/step_N`; it appears under its name only when it is whole. The data position is the step."""
    accelerator = learner.accelerator
    final, work = folder / f"step_{step}", folder / f".step_{step}"
    if accelerator.is_main_process:
        shutil.rmtree(work, ignore_errors=True)
        (work / "engine").mkdir(parents=True)
    accelerator.wait_for_everyone()
    learner.save(work / "engine")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        state = {"step": step, "links": _states(objectives), "processes": accelerator.num_processes}
        (work / "state.json").write_text(json.dumps(state))
        shutil.rmtree(final, ignore_errors=True)
        work.rename(final)
    accelerator.wait_for_everyone()


def find(path: str | Path) -> Path:
    """The checkpoint that `path` means: itself, or the newest one of a run. Raises `CheckpointError`."""
    path = Path(path)
    if (path / "state.json").is_file():
        return path
    steps = sorted((path / "checkpoints").glob("step_*/state.json"), key=lambda p: int(p.parent.name[5:]))
    if not steps:
        raise CheckpointError(f"run.resume: {path}: holds no checkpoint; name a run's folder or one of its checkpoints")
    return steps[-1].parent


def load(folder: Path, learner: Learner, objectives: tuple[Objective, ...]) -> int:
    """Restore everything; returns the number of steps done. Raises `CheckpointError`."""
    state = json.loads((folder / "state.json").read_text())
    accelerator: Accelerator = learner.accelerator
    if state["processes"] != accelerator.num_processes:
        raise CheckpointError(
            f"run.resume: {folder} was written by {state['processes']} processes and this run has"
            f" {accelerator.num_processes}; launch as many"
        )
    links = [link for objective in objectives for link in objective.chain if link.state]
    if len(links) != len(state["links"]):
        raise CheckpointError(f"run.resume: {folder} was written with another objective; resume with the same recipe")
    for link, saved in zip(links, state["links"], strict=True):
        link.state.load_state_dict(saved)
    learner.load(folder / "engine")
    return state["step"]


def set_later_aside(folder: Path) -> None:
    """Rename the checkpoints behind the one at `folder`: the run that goes on from it will write its own."""
    step = int(folder.name.removeprefix("step_"))
    for other in folder.parent.glob("step_*"):
        if int(other.name.removeprefix("step_")) > step:
            free = next(n for n in itertools.count(1) if not folder.with_name(f"replaced_{n}_{other.name}").exists())
            other.rename(folder.with_name(f"replaced_{free}_{other.name}"))


def _states(objectives: tuple[Objective, ...]) -> list[dict[str, Any]]:
    return [link.state.state_dict() for objective in objectives for link in objective.chain if link.state]
