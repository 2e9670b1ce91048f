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
from align.config.redact import scrub, scrub_tracebacks
from align.system.text import for_terminal

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def tell(error: object, config: object = ()) -> None:
    """Print an error without the secrets of `config`, or what looks like one."""
    typer.echo(for_terminal(scrub(str(error), config)), err=True)


@app.callback()
def main() -> None:
    """Token credit that you can compose, inspect and trust."""
    scrub_tracebacks()
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

    experiment = None
    try:
        experiment = load_experiment(recipe, overrides or (), REPLAY)
        scrub_tracebacks(experiment.file.data)
        lines = replay.credit(experiment, rollouts)
    except (ConfigError, replay.ReplayError) as error:
        tell(error, experiment.file.data if experiment else ())
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

    experiment = None
    try:
        experiment = load_experiment(recipe, overrides or ())
        scrub_tracebacks(experiment.file.data)
        folders = write_banks(experiment)
    except (ConfigError, DataError, ModelError) as error:
        tell(error, experiment.file.data if experiment else ())
        raise typer.Exit(1) from error
    for folder in folders:
        typer.echo(for_terminal(f"bank: {folder}"))


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
        tell(error)
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
        typer.echo(for_terminal(f"pushed: {push_run(run, repo, private=not public)}"))
    except NotPushed as error:
        tell(error)
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
def objectives(name: Annotated[str | None, typer.Argument()] = None) -> None:
    """List the objectives, or show one: its paper, its keys with defaults and ranges, its baseline."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from align.commands.objectives import entry
    from align.config.problems import nearest
    from align.registry import OBJECTIVES

    console = Console()
    if name is None:
        shown = Table("objective", "what it is", "paper", "where it is its baseline")
        for found in map(entry, OBJECTIVES):
            shown.add_row(*map(Text, map(for_terminal, (found.name, found.summary, found.paper, found.limit))))
        console.print(shown)
        return
    if name not in OBJECTIVES:
        tell(f"no objective {name!r}; {nearest(name, OBJECTIVES)}")
        raise typer.Exit(1)
    shown = Table("key", "type and range", "default")
    for key in entry(name).arguments:
        shown.add_row(*map(Text, map(for_terminal, (key.name, key.kind, key.default))))
    console.print(Text(for_terminal(entry(name).text)), shown)


if __name__ == "__main__":
    app()
