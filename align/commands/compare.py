"""`python -m align compare`: several runs on one picture, their last evaluations, and what differs in their recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from align.checkpoint.checkpoint import CheckpointError
from align.checkpoint.identity import differences, recorded, shown
from align.metrics.interval import interval
from align.result.report import estimate, plot_runs, short
from align.system.files import finished_json_lines
from align.system.text import for_terminal


class CompareError(ValueError):
    """Runs that cannot be compared; the message names the file."""


@dataclass(frozen=True)
class Compared:
    """One run: its last evaluation, its greedy rewards there, its recipe; empty where its folder has none."""

    name: str
    step: int | None
    metrics: dict[str, float]  # {metric without `eval/`: value}
    greedy: dict[tuple[str, int], float]  # {(prompt, how many times it stood before): reward}
    config: dict


@dataclass(frozen=True)
class Paired:
    """Greedy rewards of one run less those of another, prompt by prompt."""

    prompts: int
    difference: float
    low: float
    high: float
    better: int  # prompts with a higher reward
    worse: int


def read(runs: Sequence[Path]) -> list[Compared]:
    """The runs in these folders. Raises `CompareError` for fewer than two, and for a file that cannot be read."""
    if len(runs) < 2:
        raise CompareError("compare needs two runs or more: python -m align compare RUN RUN ...")
    return [_read(run, name) for run, name in zip(runs, names(runs), strict=True)]


def names(runs: Sequence[Path]) -> list[str]:
    """A short name for each folder: its last part, as many parts as tell it from the others, else its number too."""
    paths = [run.absolute() for run in runs]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        found = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(found)) == len(found):
            return found
    return [f"{name} ({number})" for number, name in enumerate(found, 1)]


def paired(run: Compared, base: Compared) -> Paired | None:
    """What `run` earned above `base` on the prompts that both answered greedily last; None where they share none."""
    shared = [key for key in base.greedy if key in run.greedy]
    if not shared:
        return None
    differences = [run.greedy[key] - base.greedy[key] for key in shared]
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return Paired(len(shared), *interval(differences), better, worse)


def draw(runs: Sequence[Path], png: Path) -> None:
    """Draw the curves of the runs. Raises `CompareError` where there are none."""
    try:
        plot_runs({name: run / "metrics.jsonl" for name, run in zip(names(runs), runs, strict=True)}, png)
    except ValueError as error:
        raise CompareError(str(error)) from error


def show(runs: Sequence[Compared]) -> Group:
    """Three tables: last evaluations, paired differences from the first run, keys in which the recipes differ."""
    return Group(_evaluations(runs), _differences(runs), _keys(runs))


def _read(run: Path, name: str) -> Compared:
    try:
        metrics, greedy = (finished_json_lines(run / name) for name in ("metrics.jsonl", "greedy.jsonl"))
        config = recorded(run)
    except (CheckpointError, ValueError) as error:
        raise CompareError(str(error).removeprefix("run.resume: ")) from error
    if not metrics:
        raise CompareError(f"{run / 'metrics.jsonl'}: there is no line; name the folder of a run (its run.out)")
    evaluations = [row for row in metrics if any(key.startswith("eval/") for key in row)]
    last = evaluations[-1] if evaluations else {}
    found = {key.removeprefix("eval/"): value for key, value in last.items() if key.startswith("eval/")}
    answers = [row for row in greedy if row["step"] == last.get("step")]
    return Compared(name, last.get("step"), found, _rewards(answers), config)


def _rewards(answers: Sequence[Mapping]) -> dict[tuple[str, int], float]:
    """Rewards by prompt; a prompt that stands several times is told apart by how often it stood before."""
    seen: dict[str, int] = {}
    found = {}
    for row in answers:
        seen[row["prompt"]] = (number := seen.get(row["prompt"], -1) + 1)
        if row["reward"] is not None:
            found[row["prompt"], number] = row["reward"]
    return found


def _evaluations(runs: Sequence[Compared]) -> Table:
    found = _table("measure", *(run.name for run in runs), title="last evaluations", caption="mean [95% interval]")
    found.add_row("step", *("none" if run.step is None else str(run.step) for run in runs))
    for key in dict.fromkeys(key for run in runs for key in run.metrics if not key.endswith(("_low", "_high"))):
        found.add_row(Text(for_terminal(key)), *(_value(run.metrics, key) for run in runs))
    return found


def _value(metrics: Mapping[str, float], key: str) -> str:
    """A metric with its interval where it has one; nothing where it is missing, which is not 0."""
    if key not in metrics:
        return ""
    if f"{key}_low" in metrics:
        return estimate(metrics[key], metrics[f"{key}_low"], metrics[f"{key}_high"])
    return short(metrics[key])


def _differences(runs: Sequence[Compared]) -> Table:
    columns = ("run", "difference", "prompts", "better", "worse")
    title = f"greedy reward less that of {runs[0].name}, prompt by prompt"
    found = _table(*columns, title=title, caption="mean over shared prompts [95% interval]")
    for run in runs[1:]:
        if pair := paired(run, runs[0]):
            numbers = (estimate(pair.difference, pair.low, pair.high), pair.prompts, pair.better, pair.worse)
            found.add_row(Text(for_terminal(run.name)), *map(str, numbers))
        else:
            found.add_row(Text(for_terminal(run.name)), "no shared prompts with a greedy reward", "0", "", "")
    return found


def _keys(runs: Sequence[Compared]) -> Table | Text:
    """The recipes side by side where they differ."""
    without = [run.name for run in runs if not run.config]
    if without:
        return Text(for_terminal(f"recipes are not compared: no config.yaml in {', '.join(without)}"))
    changed = differences([run.config for run in runs])
    if not changed:
        return Text("recipes: no key differs")
    found = _table("key", *(run.name for run in runs), title="recipes")
    for key, values in changed.items():
        found.add_row(*map(Text, (for_terminal(key), *map(shown, values))))
    return found


def _table(*columns: str, **words: str) -> Table:
    """A table whose headings are not markup."""
    found = Table(**{key: Text(for_terminal(text)) for key, text in words.items()})
    for column in columns:
        found.add_column(Text(for_terminal(column)), overflow="fold")  # a name or key that is cut tells nothing
    return found
