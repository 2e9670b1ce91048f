"""Command line: `python -m align COMMAND`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from align.schema import ConfigError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Token credit that you can compose, inspect and trust."""


@app.command()
def credit(
    recipe: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    rollouts: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
) -> None:
    """Replay recorded rollouts through the recipe's objective, without any model."""
    from align import config, replay

    try:
        lines = replay.credit(config.load(recipe, overrides or ()), rollouts)
    except (ConfigError, replay.ReplayError) as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from error
    for line in lines:
        typer.echo(json.dumps(line))


if __name__ == "__main__":
    app()
