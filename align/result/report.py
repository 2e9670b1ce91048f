"""The end-of-run report: intervals over prompts, a before/after table, curves and sample responses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from align.system.files import finished_json_lines
from align.system.text import for_terminal

# of several runs in one picture: colours that most eyes tell apart (Okabe and Ito), and a mark besides
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")

MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def cells(row: dict) -> tuple[str, str, str]:
    """(name, before, after) as text; intervals are row keys before_interval, after_interval."""
    return row["name"], *(estimate(row[when], *row[f"{when}_interval"]) for when in ("before", "after"))


def estimate(value: float, low: float, high: float) -> str:
    """A value with its interval, `0.800 [0.700, 0.900]`."""
    return f"{short(value)} [{short(low)}, {short(high)}]"


def short(value: float) -> str:
    """Three decimals; of a large number its first four digits."""
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.3e}"


def table(rows: Iterable[dict]) -> Table:
    """Measure, before and after with their 95% intervals; the rows are those of `cells`."""
    shown = Table("measure", "before", "after", caption="mean over prompts [95% interval]")
    for row in rows:
        shown.add_row(*map(Text, map(for_terminal, cells(row))))  # Text: brackets are not markup
    return shown


def series(rows: list[dict], *keys: str) -> np.ndarray:
    """[1 + keys, n] steps, then the values of each key, of the rows in which all keys are finite numbers.

    Where a step was logged twice (a resumed run repeats some) the last row counts.
    """
    by_step = {row["step"]: [row[key] for key in keys] for row in rows if all(key in row for key in keys)}
    points = np.array([[step, *values] for step, values in sorted(by_step.items())], dtype=float)
    points = points.reshape(-1, 1 + len(keys))
    return points[np.isfinite(points).all(axis=1)].T


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving mean over about a tenth of the points; at the ends over those that exist."""
    half = len(values) // 20
    edges = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    low, high = np.maximum(centre - half, 0), np.minimum(centre + half + 1, len(values))
    return (edges[high] - edges[low]) / (high - low)


def plot(metrics_jsonl: Path, png: Path) -> None:
    """Draws reward and response length (tokens) by step, of pairs loss and accuracy: training raw and smoothed,
    evaluation with error bars. Raises ValueError where the file has nothing to draw.
    """
    rows = _rows(metrics_jsonl)
    with _figure(panels := _panels(rows), png) as axes:
        for axis, (_, training, evaluation) in zip(axes, panels, strict=True):
            steps, values = series(rows, training)
            if len(steps):
                axis.plot(steps, values, color="tab:blue", linewidth=0.6, alpha=0.5)
                axis.plot(steps, smooth(values), color="tab:blue", linewidth=2, label="training")
            _evaluations(axis, rows, evaluation, "tab:orange", "o", "evaluation")
            if axis.has_data():
                axis.legend()
        if not any(axis.has_data() for axis in axes):
            raise ValueError(f"{metrics_jsonl} has neither reward nor response length to draw")


def plot_runs(runs: Mapping[str, Path], png: Path) -> None:
    """Draws what `plot` does for several runs, {name: metrics.jsonl}, each in a colour with a mark of its own: training
    smoothed and thin, and not where runs of its kind have another measure, such as the loss of a run with rewards.

    Raises ValueError where no file has anything to draw.
    """
    rows = {name: _rows(path) for name, path in runs.items()}
    panels = list(dict.fromkeys(panel for found in rows.values() for panel in _panels(found)))
    with _figure(panels, png) as axes:
        for axis, panel in zip(axes, panels, strict=True):
            _, training, evaluation = panel
            for number, (name, found) in enumerate(rows.items()):
                if panel not in _panels(found):  # the loss of a run on rewards is not one of pairs
                    continue
                colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
                steps, values = series(found, training)
                label = None if series(found, evaluation).size else literal(name)
                if len(steps):
                    axis.plot(steps, smooth(values), color=colour, linewidth=0.8, alpha=0.6, label=label)
                _evaluations(axis, found, evaluation, colour, f"{mark}-", literal(name))
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize="small")
        if not any(line.get_xdata().size for axis in axes for line in axis.lines):
            raise ValueError(f"{', '.join(map(str, runs.values()))}: no reward, response length or loss to draw")


def literal(text: object) -> str:
    """A text of others in a picture, where a dollar would begin a formula, and a first underscore hide a label."""
    shown = for_terminal(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _rows(metrics_jsonl: Path) -> list[dict]:
    return finished_json_lines(metrics_jsonl)


def _panels(rows: list[dict]) -> list[tuple[str, str, str]]:
    """(label, metric of training, metric of evaluation) of what is drawn of a run."""
    if any("reward/mean" in row or "eval/reward" in row for row in rows):
        return [
            ("reward", "reward/mean", "eval/reward"),
            ("response length (tokens)", "response/length", "eval/length"),
        ]
    return [("loss", "loss", "eval/pairs/loss"), ("accuracy", "accuracy", "eval/pairs/accuracy")]


@contextmanager
def _figure(panels: Sequence[tuple[str, str, str]], png: Path) -> Iterator[Sequence]:
    """Axes of panels, one below the other; they are saved when the block ends well."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # verifying a result draws nothing
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and none of pyplot's global state
    axes = figure.subplots(len(panels), 1, sharex=True)
    for axis, (label, _, _) in zip(axes, panels, strict=True):
        axis.set_ylabel(label)
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)  # all panels share it
    yield axes
    figure.savefig(png, dpi=150)


def _evaluations(axis, rows: list[dict], name: str, colour: str, mark: str, label: str) -> None:
    """Draw a metric of the evaluations with its interval."""
    steps, values = series(rows, name)
    if len(steps):
        axis.plot(steps, values, mark, color=colour, label=label, markersize=5, linewidth=1.2)
    steps, lows, highs = series(rows, f"{name}_low", f"{name}_high")
    if len(steps):
        axis.vlines(steps, lows, highs, color=colour)  # ends need not lie evenly around the mean


def samples(before: list[dict], after: list[dict], n: int = 3) -> Group:
    """The first `n` prompts, each with the response before and after training; rows hold prompt and response, as text.

    Raises ValueError where the two lists do not have the same prompts in the same order.
    """
    if [row["prompt"] for row in before] != [row["prompt"] for row in after]:
        raise ValueError("samples before and after training must be of the same prompts in the same order")
    labelled = (
        {"prompt": old["prompt"], "before": old["response"], "after": new["response"]}
        for old, new in zip(before, after, strict=True)
    )
    return Group(*map(panel, islice(labelled, n)))


def panel(texts: Mapping[str, object]) -> Panel:
    """Texts of others, each with its label, in a frame."""
    shown = Table.grid("", "", padding=(0, 2, 1, 0))
    for label, text in texts.items():
        shown.add_row(Text(label, style="bold"), Text(for_terminal(text)))  # Text: a response may look like markup
    return Panel(shown)
