"""`python -m align xray`: what each token earned, and which transform took it, on one page or on a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from align.config.experiment import Experiment, load_experiment
from align.config.recipe_file import ConfigError
from align.config.redact import scrub_tracebacks
from align.config.rules import REPLAY
from align.result.samples import ReplayError
from align.system.blame import UserExit, no_exit
from align.system.text import for_terminal
from align.xray.page import write
from align.xray.read import look
from align.xray.text import show as on_terminal

USER_ERRORS = (ConfigError, ReplayError, OSError)

STEPS = re.compile(r"(\d+)(?:\.\.(\d+))?")


def steps(text: str | None) -> range | None:
    """The steps of `--step`: `3`, or `3..8`, both ends included. Raises `ReplayError`."""
    if text is None:
        return None
    found = STEPS.fullmatch(text)
    if not found or int(found[2] or found[1]) < int(found[1]):
        raise ReplayError(f"--step: {text!r} is neither a step nor a range of steps; write 3 or 3..8")
    return range(int(found[1]), int(found[2] or found[1]) + 1)


def other(recipe: Path) -> Experiment:
    """The recipe of `--against`. Raises `ConfigError`."""
    experiment = load_experiment(recipe, (), REPLAY)
    scrub_tracebacks(experiment.file.data)
    return experiment


def show(path: Path, step: str | None, against: Experiment | None, page: Path | None) -> None:
    """Write the page, or print what it shows where there is none to write. Raises one of `USER_ERRORS`."""
    own, notes = _own(path)
    found = look(path, steps(step), own, against)
    found = replace(found, notes=[*notes, *found.notes])
    if page is None:
        Console().print(on_terminal(found))
    else:
        size = write(found, page)
        Console().print(Text(for_terminal(f"page: {page} ({size / 2**20:.1f} MiB)")), soft_wrap=True)


def _own(path: Path) -> tuple[Experiment | None, Sequence[str]]:
    """(the recipe that a run followed, or None; why it cannot be used)."""
    config = path / "config.yaml"
    if not config.is_file():
        return None, []
    try:
        with no_exit("a function that the recipe names"):
            return load_experiment(config, (), REPLAY), []
    except (ConfigError, UserExit) as error:
        return None, [f"What only the loss knows is not shown: {config.name} of the run cannot be used: {error}"]
