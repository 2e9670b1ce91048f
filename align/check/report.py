"""Report what `python -m align check` finds, as plain data and on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from align.check import summary
from align.check.check import survey, try_resume, try_rewards
from align.config import launch
from align.config.experiment import examine
from align.config.launch import Launch
from align.config.recipe_file import ConfigError
from align.config.redact import scrub
from align.system.text import for_terminal


def checkup(
    recipe: Path, overrides: Iterable[str] = (), launch_file: Path | None = None, gpu_gib: float | None = None
) -> dict[str, Any]:
    """Check a recipe: {ok, problems, notes, facts}, the last two empty where there are problems.

    `gpu_gib` is the memory of the GPUs that it is checked for; without it that of this machine's.
    """
    problems, machine = [], Launch() if gpu_gib is None else Launch(hardware=launch.for_gpus(None, gpu_gib)[0])
    try:
        machine = launch.of_file(launch_file, gpu_gib) if launch_file else machine
    except ConfigError as error:
        problems += error.problems
    try:
        experiment = examine(recipe, overrides)
    except ConfigError as error:  # no recipe at all
        return _result([scrub(problem) for problem in [*problems, *error.problems]])
    found = survey(experiment, machine)
    try_resume(found)
    trials = try_rewards(found)
    problems += [*found.problems, *(text for trial in trials.values() for text in (*trial.problems, *trial.doubts))]
    if problems:
        return _result([scrub(problem, experiment.file.data) for problem in problems])
    depends = summary.setup(found)
    if too_large := summary.too_large(found, depends):
        return _result(too_large)
    notes = [scrub(note, experiment.file.data) for trial in trials.values() for note in trial.notes]
    return _result([], [*summary.notes(found), *notes], summary.facts(found, trials, depends))


def show(result: Mapping[str, Any]) -> None:
    """Print the problems, or else what the run will do."""
    console = Console(soft_wrap=True)
    for problem in result["problems"]:
        console.print(Text(for_terminal(f"problem: {problem}"), style="red"))
    for note in result["notes"]:
        console.print(Text(for_terminal(f"note: {note}"), style="yellow"))
    if result["ok"]:
        _show_facts(result["facts"], console)
    count = len(result["problems"])
    console.print("ok" if result["ok"] else f"{count} problem{'s' if count > 1 else ''}")


def _show_facts(facts: Mapping[str, Any], console: Console) -> None:
    """Print the facts: first those of one line each, then the memory by phase, then what the recipe leaves open."""
    apart = ("memory_gib", "chosen")
    table = Table(show_header=False, box=None)
    for name, value in _flat({name: fact for name, fact in facts.items() if name not in apart}):
        table.add_row(*map(Text, map(for_terminal, (name, value))))
    console.print(table)
    if phases := facts["memory_gib"]:
        console.print(_memory(phases, facts["launch"]["on"]))
    if facts["chosen"]:
        table = Table(
            "left open", "taken", "why", box=None, title="Keys that the recipe leaves open", title_justify="left"
        )
        for key, choice in facts["chosen"].items():
            table.add_row(*map(Text, map(for_terminal, (key, _worded(choice["value"]), choice["why"]))))
        console.print(table)


def _memory(phases: Mapping[str, Mapping[str, float]], where: str) -> Table:
    """The estimate: a line a term, a column a phase, the largest sum last."""
    on_gpu = "run" not in phases
    how = "estimated by arithmetic, not measured on any GPU" if on_gpu else "estimated"
    title = Text(for_terminal(f"GiB of each process, on {where}: {how}"))
    table = Table("", box=None, title=title, title_justify="left")
    for phase in phases:
        table.add_column(Text(for_terminal(phase)), justify="right")
    terms = list(dict.fromkeys(name for terms in phases.values() for name in terms if name != "total"))
    for name in [*terms, "total"]:
        row = [f"{terms[name]:.2f}" if terms.get(name) else "" for terms in phases.values()]
        if any(row):
            table.add_row(Text(for_terminal(name)), *row)
    return table


def _result(problems: list[str], notes: Iterable[str] = (), facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The report as plain data."""
    return {"ok": not problems, "problems": problems, "notes": list(notes), "facts": dict(facts or {})}


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted name, value in words) of nested facts, without those that are not known."""
    out = []
    for name, value in facts.items():
        inner = isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values())
        if inner:
            out += _flat(value, f"{prefix}{name}.")
        elif prefix or value not in (None, [], {}):
            out.append((f"{prefix}{name}", _worded(value)))
    return out


def _worded(value: Any) -> str:
    """A fact without Python's brackets; `none` for what is empty."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_worded(inner)}" for name, inner in value.items() if inner is not None) or "none"
    if isinstance(value, (list, tuple)):
        return " and ".join(map(_worded, value)) or "none"
    return "none" if value is None else str(value)
