"""What a run shows on the terminal."""

from __future__ import annotations

import logging
import os
import warnings

from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers.utils.logging import disable_progress_bar

from align.system.parent import die_with_parent


def state_of(metrics: dict[str, float]) -> str:
    """What the progress bar shows of a step."""
    if "reward/mean" in metrics:
        return f"reward {metrics['reward/mean']:.2f}  length {metrics['response/length']:.1f}"
    return f"loss {metrics['loss']:.3f}"


def progress(accelerator: Accelerator) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not accelerator.is_main_process,
    )


def end_with_launcher() -> None:
    """Where `accelerate launch` is killed, its processes would go on, beside the run that is resumed (Linux only)."""
    if "LOCAL_RANK" in os.environ:
        die_with_parent()


def quiet() -> None:
    """Leave the terminal to the progress bar; warnings and errors still come through."""
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # vLLM and torch talking to each other
    for name in ("DeepSpeed", "deepspeed", "vllm", "transformers", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
