"""Join the processes of a run, on one machine or on several."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from align.config.experiment import Experiment
from align.config.recipe_file import ConfigError
from align.run import machines
from align.system import baton
from align.system.hardware import gpus


def make_accelerator(experiment: Experiment) -> Accelerator:
    """Join the processes of the run; DeepSpeed builds its op here where it is not built yet. Raises `ConfigError`
    where the launcher does not start DeepSpeed, or more processes than this machine has GPUs, or where machines of the
    run are missing."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
        alone = "python recipes/train.py RECIPE without a launcher (one process)"
        raise ConfigError(
            [f"no DeepSpeed: start with accelerate launch --config_file launch/cpu_zero2.yaml, or {alone}"]
        )
    ranks, have = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), gpus()
    if 0 < have < ranks:
        what = f"{ranks} processes on a machine with {have} GPU{'s' if have > 1 else ''}"
        raise ConfigError([f"{what}; launch with --num_processes {have}"])
    baton.install()
    patience = machines.meet()
    backend = "nccl" if torch.cuda.is_available() else "gloo"  # accelerate names none without an accelerator
    run = experiment.recipe.run  # None where it is wrong, which the check is about to say
    accelerator = Accelerator(
        log_with=list(run.trackers) or None if run else None,
        project_dir=run.out if run else None,
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=patience)],
    )
    machines.be_patient()
    return accelerator


def set_threads() -> None:
    """accelerate exports OMP_NUM_THREADS=1; on a CPU this rank's share of the cores is what it should use."""
    if not torch.cuda.is_available():
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
