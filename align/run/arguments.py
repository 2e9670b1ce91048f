"""Read the command line of a training run."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from align.config.redact import scrub
from align.system.parent import say_last

UsageError = typer.BadParameter.__base__  # of click, or of the copy of it that newer typers bring along

USAGE = (
    "python recipes/train.py RECIPE [key=value ...] [--resume], or align train RECIPE ...; for several processes "
    "accelerate launch --config_file launch/cpu_zero2.yaml recipes/train.py RECIPE ..., or -m align train RECIPE ..."
)


@dataclass(frozen=True)
class Asked:
    """The parsed command line."""

    recipe: str
    overrides: tuple[str, ...]  # key=value
    resume: bool


app = typer.Typer(add_completion=False, rich_markup_mode=None)  # its brackets are no markup


@app.command(help="Train as a recipe says.", epilog=USAGE)
def _asked(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe: run.steps=10.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in run.out. Exact, bit for bit: metrics and weights, on CPU with one process, or "
            "with ZeRO-2 and as many processes as before.",
        ),
    ] = False,
) -> Asked:
    return Asked(recipe, tuple(overrides or ()), resume)


def parse(words: Sequence[str]) -> Asked | int:
    """Return what the words ask for; the exit code where they ask for help (0) or are wrong (2), told in one line."""
    try:
        asked = app(list(words), prog_name="recipes/train.py", standalone_mode=False)
        if isinstance(asked, Asked) and not Path(asked.recipe).is_file():
            beside = [str(path) for path in Path(asked.recipe).parent.glob("*.y*ml")]
            close = difflib.get_close_matches(asked.recipe, beside, n=1)
            fix = f"did you mean {close[0]}?" if close else "align recipes NAME copies one that comes with align."
            raise typer.BadParameter(f"{asked.recipe}: no such recipe; {fix}")
        return asked
    except UsageError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            say_last(scrub(f"{error.format_message()} Usage: {USAGE}"))
        return 2
