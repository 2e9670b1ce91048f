"""The output of a run: a progress bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import fmean

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text
from transformers.utils.logging import disable_progress_bar

from align.loop import PHASES
from align.run.environment import verbose
from align.system.text import for_terminal

EVERY_S = 30.0  # between two lines of steps in a log


def is_main() -> bool:
    """Whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str, style: str = "", console: Console | None = None) -> None:
    """Print a line on the main process, above a progress bar where there is one. Nothing in it is markup."""
    if is_main():
        (console or Console()).print(
            Text(for_terminal(text), style), soft_wrap=True
        )  # flushes, so a log has it at once


def say_own(text: str) -> None:
    """Print a line of this process, as `say` does, whichever it is; one that is not the main one is named."""
    own = "" if is_main() else f"rank {os.environ['RANK']}: "
    Console().print(Text(for_terminal(own + text)), soft_wrap=True)


def state_of(metrics: Mapping[str, float]) -> str:
    """Describe a step: mean reward and length in tokens, or the loss where nothing is sampled."""
    if "reward/mean" in metrics:
        return f"reward {metrics['reward/mean']:.2f}  length {metrics['response/length']:.1f}"
    return f"loss {metrics['loss']:.3f}"


def evaluation_of(metrics: Mapping[str, float]) -> str:
    """Describe an evaluation: mean reward with its 95% interval and length in tokens; of pairs loss and accuracy."""

    def wanted(name: str) -> bool:
        return name in ("eval/reward", "eval/length") or (
            name.startswith("eval/pairs/") and name.rpartition("/")[2] in ("loss", "accuracy")
        )

    shown = []
    for name in filter(wanted, metrics):
        digits = 1 if name == "eval/length" else 3
        interval = ""
        if name != "eval/length" and f"{name}_low" in metrics:
            interval = f" [{metrics[f'{name}_low']:.3f}, {metrics[f'{name}_high']:.3f}]"
        shown.append(f"{name.removeprefix('eval/')} {metrics[name]:.{digits}f}{interval}")
    return "  ".join(shown)


def duration(seconds: float) -> str:
    """Return seconds as a person says them: `45 s`, `12 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class StepLines:
    """Prints a line after the first step, the last one, and each that ends `EVERY_S` after the line before."""

    def __init__(self, total: int, start: int, console: Console, now: Callable[[], float] = time.monotonic):
        self.total, self.start, self.console = total, start, console
        self._now, self._began = now, now()
        self._told: float | None = None  # when the last line was printed
        self._seconds: list[float] = []  # of each step since then

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Take note of a step; `done` counts from 1. Seconds a step are without evaluations, the time left has them."""
        self._seconds.append(sum(metrics.get(f"seconds/{phase}", 0.0) for phase in PHASES))
        now = self._now()
        if self._told is not None and done < self.total and now - self._told < EVERY_S:
            return
        left = (now - self._began) / (done - self.start) * (self.total - done)
        pace = f"{fmean(self._seconds):.1f} s a step" + (f"  {duration(left)} left" if left else "")
        say(f"step {done}/{self.total}  {state_of(metrics)}  {pace}", console=self.console)
        self._told, self._seconds = now, []


class StepBar:
    """Moves a progress bar."""

    def __init__(self, total: int, start: int, bar: Progress):
        self.console, self._bar = bar.console, bar
        self._task = bar.add_task("training", total=total, completed=start, state="")

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        self._bar.update(self._task, completed=done, state=state_of(metrics))


@contextmanager
def progress(total: int, start: int) -> Iterator[StepLines | StepBar]:
    """Show the steps of a run; only the main process shows any."""
    console = Console()
    if not console.is_interactive:
        yield StepLines(total, start, console)
        return
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}")]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not is_main()) as bar:
        yield StepBar(total, start, bar)


@contextmanager
def stage(name: str, note: str = "") -> Iterator[list[str]]:
    """Print a line with the seconds of a part of the start when it is done; a terminal shows it while it runs. The
    block may append to the notes that end the line."""
    console, start, notes = Console(), time.perf_counter(), [note] if note else []
    if console.is_interactive and is_main():
        with console.status(Text(for_terminal(f"{name} {note}".strip()))):
            yield notes
    else:
        yield notes
    say("  ".join([f"{name} {time.perf_counter() - start:.1f} s", *notes]), console=console)


def tell_imports() -> None:
    """Print how long this process took to come so far, which is the time that importing the libraries takes."""
    say(f"libraries {time.time() - psutil.Process().create_time():.1f} s")


def quiet() -> None:
    """Leave the terminal to the run's own lines; warnings and errors still come through."""
    if verbose():
        return
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # vLLM and torch talking to each other
    for name in ("DeepSpeed", "deepspeed", "vllm", "transformers", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if backend := sys.modules.get("deepspeed.comm.torch"):
        backend.print = lambda *_: None  # that its op was built
