"""The command line: `python -m align COMMAND`. Each command imports what it needs, so that help is quick."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from align.config.recipe_file import ConfigError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Token credit that you can compose, inspect and trust."""
    logging.disable(logging.WARNING)  # DeepSpeed warns on stdout, where --json is read


@app.command()
def credit(
    recipe: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    rollouts: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
) -> None:
    """Replay recorded rollouts through the recipe's objective, without any model."""
    from align.commands import credit as replay
    from align.config.experiment import load_experiment
    from align.config.rules import REPLAY

    try:
        lines = replay.credit(load_experiment(recipe, overrides or (), REPLAY), rollouts)
    except (ConfigError, replay.ReplayError) as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from error
    for line in lines:
        typer.echo(json.dumps(line))


@app.command()
def annotate(
    recipe: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
) -> None:
    """Compute the log-probabilities of the recipe's pairs under reference and guide, into the folder `data.bank`."""
    from align.commands.annotate import annotate as write_banks
    from align.config.experiment import load_experiment
    from align.data.prompts import DataError
    from align.model.locate import ModelError

    try:
        folders = write_banks(load_experiment(recipe, overrides or ()))
    except (ConfigError, DataError, ModelError) as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from error
    for folder in folders:
        typer.echo(f"bank: {folder}")


@app.command()
def verify(
    result: Annotated[str, typer.Argument(metavar="DIR_OR_REPO")],
    base: Annotated[str | None, typer.Option(help="Folder or name of the base, if not the one in the record.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Reload an adapter over its base and compare it with what its training recorded. Exits with 1 where it differs."""
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from align.model.locate import ModelError
    from align.result import verify

    disable_progress_bar()
    try:
        checks = verify.verify(result, base)
    except ModelError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(verify.as_json(checks))
    else:
        Console().print(verify.table(checks))
    if not checks[-1].passed:
        raise typer.Exit(1)


@app.command()
def push(
    run: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of a finished run.")],
    repo: Annotated[str, typer.Argument(help="user/name; the token is HF_TOKEN or the login.")],
    public: Annotated[bool, typer.Option("--public")] = False,
) -> None:
    """Verify the result of a run and upload it with its card."""
    from align.result.push import NotPushed, push_run

    try:
        typer.echo(f"pushed: {push_run(run, repo, private=not public)}")
    except NotPushed as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from error


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    launch: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="a file of launch/")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object: ok, problems, notes, facts")] = False,
) -> None:
    """Find everything that would go wrong in a training run, without loading a model."""
    from align.check.report import checkup, show

    with contextlib.redirect_stdout(sys.stderr):  # what the modules of rewards print
        result = checkup(recipe, overrides or (), launch)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        show(result)
    raise typer.Exit(0 if result["ok"] else 1)


@app.command()
def objectives(
    name: Annotated[str | None, typer.Argument(help="of an objective, transform or loss, or module:function")] = None,
) -> None:
    """List the objectives, or show one of them, a transform or a loss: its keys, its chain, its paper, its source."""
    from rich.console import Console

    from align.commands.objectives import show

    try:
        show(name, Console())
    except ValueError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
