"""The command line: `python -m align COMMAND`. Each command imports what it needs, so that help is quick."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from align.config.recipe_file import ConfigError
from align.config.redact import scrub, scrub_tracebacks
from align.system.blame import UserExit, no_exit
from align.system.text import for_terminal

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def tell(error: object, config: object = ()) -> None:
    """Print an error without the secrets of `config`, or what looks like one."""
    typer.echo(for_terminal(scrub(str(error), config)), err=True)


@contextlib.contextmanager
def told(*errors: type[Exception]) -> Iterator[None]:
    """End the command with 1 where one of these is raised inside the block, which is told."""
    try:
        yield
    except errors as error:
        tell(error)
        raise typer.Exit(1) from error


@app.callback()
def main(context: typer.Context) -> None:
    """Token credit that you can compose, inspect and trust."""
    scrub_tracebacks()
    if context.invoked_subcommand != "train":
        logging.disable(logging.WARNING)  # DeepSpeed warns on stdout, where --json is read


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    short_help="Train as a recipe says.",
)
def train(context: typer.Context) -> None:
    from align.run.environment import prepare

    prepare(context.args)  # what torch, DeepSpeed and vLLM read when they are imported

    from align.train import main as run

    raise typer.Exit(run(context.args))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="gfpo_chain_sum, launch/cpu_zero2")] = None,
    into: Annotated[Path, typer.Option(file_okay=False, help="folder that gets recipes/ and launch/")] = Path(),
) -> None:
    """List the recipes and launch files that come with align, or copy one with the recipes that it builds on."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from align.commands.recipes import copy, first_comment, shipped

    if name is None:
        shown = Table("file", "what it is", box=None)
        for key, path in shipped().items():
            shown.add_row(*map(Text, (key, first_comment(path))))
        Console().print(shown)
        return
    with told(ConfigError):
        for path in copy(name, into):
            typer.echo(for_terminal(f"copied: {path}"))


@app.command()
def credit(
    recipe: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    rollouts: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
) -> None:
    """Replay recorded rollouts through the recipe's objective, without any model."""
    from align.commands import credit as replayed
    from align.config.experiment import load_experiment
    from align.config.rules import REPLAY
    from align.result.samples import ReplayError

    experiment = None
    try:
        with no_exit("a function that the recipe names"):
            experiment = load_experiment(recipe, overrides or (), REPLAY)
            scrub_tracebacks(experiment.file.data)
            lines = replayed.credit(experiment, rollouts, tell)
    except (ConfigError, ReplayError, UserExit) as error:
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
def evaluate(
    recipe: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="DIR_OR_REPO", help="instead of the policy as the recipe starts it")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object: metrics, samples")] = False,
) -> None:
    """Evaluate on what the recipe holds out, without training: every reward by name, pass@k, length, greedy answers."""
    from align.run.environment import note_launcher, set_environment

    note_launcher()
    set_environment()

    from rich.console import Console

    from align.commands import evaluate as alone
    from align.run.terminal import is_main
    from align.system.parent import say_last
    from align.train import USER_ERRORS

    experiment = None
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the stages, where --json is read
            experiment = alone.read_recipe(recipe, adapter, overrides or ())
            scrub_tracebacks(experiment.file.data)
            with no_exit("a function that the recipe names"):
                found = alone.evaluate(experiment)
    except USER_ERRORS as error:
        if is_main():
            say_last(scrub(str(error), experiment.file.data if experiment else ()))
        raise typer.Exit(1) from error
    if not is_main():
        return
    if as_json:
        typer.echo(json.dumps({"metrics": found.metrics, "samples": found.samples}))
    else:
        Console().print(alone.show(found))


@app.command()
def xray(
    run: Annotated[Path, typer.Argument(metavar="RUN|FILE", exists=True, help="a run's folder, or a samples.jsonl")],
    step: Annotated[str | None, typer.Option(metavar="N|A..B", help="these steps only")] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="RECIPE", exists=True, dir_okay=False, help="the same responses under it")
    ] = None,
    out: Annotated[Path, typer.Option("-o", dir_okay=False, help="where the page goes")] = Path("xray.html"),
    text: Annotated[bool, typer.Option("--text", help="print it instead")] = False,
) -> None:
    """See what every token earned and which transform took it, on one page that works offline."""
    from align.commands import xray as page

    other = None
    try:
        with no_exit("a function that the recipe names"):
            other = page.other(against) if against else None
            page.show(run, step, other, None if text else out)
    except (*page.USER_ERRORS, UserExit) as error:
        tell(error, other.file.data if other else ())
        raise typer.Exit(1) from error


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN|FILE", exists=True, help="a run's folder, or a samples.jsonl")],
    kind: Annotated[str, typer.Option("--format", metavar="verifiers", help="traces.jsonl of verifiers 0.4")],
    out: Annotated[Path | None, typer.Option("--out", "-o", dir_okay=False, help="default: beside the record")] = None,
) -> None:
    """Write the record of a run in another library's format."""
    from align.commands import export as other

    with told(*other.USER_ERRORS):
        typer.echo(for_terminal(f"exported: {other.export(run, kind, out)}"))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option("-o", dir_okay=False, help="where the picture goes")] = Path("compare.png"),
) -> None:
    """Draw the curves of several runs, and tell their last evaluations and what differs in their recipes."""
    from rich.console import Console

    from align.commands import compare as several

    with told(several.CompareError, OSError):
        found = several.read(runs)
        several.draw(runs, out)
    Console().print(several.show(found))
    typer.echo(for_terminal(f"picture: {out}"))


@app.command()
def verify(
    result: Annotated[str, typer.Argument(metavar="RUN_OR_DIR_OR_REPO")],
    base: Annotated[str | None, typer.Option(help="Folder or name of the base, if not the one in the record.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Reload an adapter over its base and compare it with what its training recorded. Exits with 1 where it differs."""
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from align.model.locate import ModelError
    from align.result import verify

    disable_progress_bar()
    with told(ModelError):
        checks = verify.verify(result, base)
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

    with told(NotPushed):
        typer.echo(for_terminal(f"pushed: {push_run(run, repo, private=not public)}"))


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    launch: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="a file of launch/")] = None,
    gpu_gib: Annotated[
        float | None, typer.Option(min=1.0, max=10_000.0, help="of each GPU; default: this machine's, else 80")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object: ok, problems, notes, facts")] = False,
) -> None:
    """Find everything that would go wrong in a training run, without loading a model."""
    from align.check.report import checkup, show

    with contextlib.redirect_stdout(sys.stderr):  # what the modules of rewards print
        result = checkup(recipe, overrides or (), launch, gpu_gib)
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

    with told(ValueError):
        show(name, Console())


if __name__ == "__main__":
    app()
