"""The table, the curves and the samples as they are shown."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread
from rich.console import Console

from align.result.report import plot, plot_runs, samples, series, smooth, table


def shown(renderable) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_table():
    row = {"before": 0.16, "before_interval": [0.1, 0.2], "after": 0.8, "after_interval": [0.75, 0.85]}
    text = shown(table([{"name": "reward [bold]sampled[/bold]"} | row]))
    assert "reward [bold]sampled[/bold]" in text  # not taken for markup
    assert text.index("0.160 [0.100, 0.200]") < text.index("0.800 [0.750, 0.850]")


def test_series():
    rows = [
        {"step": 2, "a": 1.0},
        {"step": 1, "a": 5.0, "b": 6.0},
        {"step": 2, "a": 3.0, "b": 4.0},  # step 2 again, after a resume
        {"step": 3, "a": math.nan},
        {"step": 4, "b": 1.0},
    ]
    assert series(rows, "a").tolist() == [[1, 2], [5, 3]]
    assert series(rows, "a", "b").tolist() == [[1, 2], [5, 3], [6, 4]]
    assert series(rows, "absent").shape == (2, 0)


@pytest.mark.parametrize("count", [1, 19, 45])
def test_smooth_is_the_mean_of_the_neighbours(count):
    values = np.random.default_rng(count).normal(size=count)
    half = count // 20
    expected = [np.mean(values[max(0, i - half) : i + half + 1]) for i in range(count)]
    np.testing.assert_allclose(smooth(values), expected, atol=1e-12)


def coloured(png, dominant: int) -> int:
    """Number of clearly saturated pixels in whose colour this channel (0 red, 2 blue) is the largest."""
    pixels = imread(png)[..., :3]
    saturated = pixels.max(axis=-1) - pixels.min(axis=-1) > 0.5
    return int((saturated & (pixels.argmax(axis=-1) == dominant)).sum())


def write_metrics(path, with_training: bool, with_evaluation: bool):
    lines = []
    for step in range(1, 41):
        if with_training:
            lines.append({"step": step, "reward/mean": step / 40, "response/length": 20 - step / 4})
        if with_evaluation and step % 10 == 0:
            reward = {"eval/reward": step / 40, "eval/reward_low": step / 40 - 0.2, "eval/reward_high": step / 40 + 0.1}
            lines.append({"step": step, "eval/length": 12.0} | reward)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_plot(tmp_path):
    metrics, png = tmp_path / "metrics.jsonl", tmp_path / "curves.png"
    found = {}
    for with_training, with_evaluation in [(True, True), (True, False), (False, True)]:
        write_metrics(metrics, with_training, with_evaluation)
        plot(metrics, png)
        found[with_training, with_evaluation] = (coloured(png, 2) > 500, coloured(png, 0) > 500)
    assert all(drawn == lines for lines, drawn in found.items()), found


def test_plot_of_nothing(tmp_path):
    write_metrics(tmp_path / "metrics.jsonl", False, False)
    with pytest.raises(ValueError, match="neither reward nor response length"):
        plot(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_samples():
    before = [{"prompt": f"What is 1 + {i}?", "response": f"[red]old {i}[/red]"} for i in range(5)]
    after = [{"prompt": f"What is 1 + {i}?", "response": f"new {i}"} for i in range(5)]
    text = shown(samples(before, after, n=2))
    assert text.index("What is 1 + 0?") < text.index("[red]old 0[/red]") < text.index("new 0") < text.index("new 1")
    assert "new 2" not in text


def test_samples_of_different_prompts():
    with pytest.raises(ValueError, match="same prompts"):
        samples([{"prompt": "a", "response": "x"}], [{"prompt": "b", "response": "x"}])


def test_each_run_is_named_once_in_every_panel_that_it_is_in_and_is_in_those_of_its_kind(tmp_path, monkeypatch):
    """The loss of a run with rewards is not beside that of pairs; a run without evaluations has its training named."""
    drawn, plot_of = [], Axes.plot

    def recorded(axis, *args, **rest):
        drawn.append((axis.get_ylabel(), rest.get("label")))
        return plot_of(axis, *args, **rest)

    monkeypatch.setattr(Axes, "plot", recorded)
    lines = {
        "rewards": [{"step": 1, "reward/mean": 0.5, "response/length": 3.0, "loss": 9.0}],
        "pairs": [{"step": 0, "eval/pairs/loss": 0.7}, {"step": 1, "loss": 0.6}],
    }
    for name, rows in lines.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_runs({name: tmp_path / name for name in lines}, tmp_path / "c.png")
    named = [found for found in drawn if found[1]]
    assert named == [("reward", "rewards"), ("response length (tokens)", "rewards"), ("loss", "pairs")]
