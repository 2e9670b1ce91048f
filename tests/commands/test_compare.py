"""`python -m align compare`: pairing by prompt, the tables, the picture, and folders that are no runs."""

import io
import json

import pytest
import yaml
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console
from support.hostile_text import ESCAPES, acting
from typer.testing import CliRunner

from align.__main__ import app
from align.checkpoint.identity import differences
from align.commands import compare
from align.metrics.interval import interval

CONFIG = {
    "model": {"policy": "some/model"},
    "data": {"prompts": "prompts.jsonl"},
    "rewards": {"rewards.format:boxed": 1.0},
    "objective": {"name": "grpo"},
    "run": {"out": "runs/x", "steps": 4},
}


@pytest.fixture
def run(tmp_path):
    """A function: the folder of a run with these greedy rewards {prompt: reward} at its last evaluation."""

    def make(name, greedy, step=20, config=CONFIG, reward=0.5):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        rows = [{"step": i, "loss": 0.1, "reward/mean": i / 20, "response/length": 9.0} for i in range(1, step + 1)]
        measured = {"eval/reward": reward, "eval/reward_low": reward - 0.1, "eval/reward_high": reward + 0.2}
        rows += [{"step": 0, "eval/reward": 0.1}, {"step": step, **measured, "eval/failed": 0}]
        _write(folder / "metrics.jsonl", rows)
        first = [{"step": 0, "prompt": p, "response": "", "reward": 9.0} for p, _ in greedy]
        last = [{"step": step, "prompt": p, "response": "", "reward": r} for p, r in greedy]
        _write(folder / "greedy.jsonl", first + last)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return folder

    return make


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def shown(renderable) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_differences_are_paired_by_prompt_not_by_line(run):
    """Prompts in another order, one twice, one failed, one that only one run has."""
    first = run("a", [("p", 0.0), ("q", 1.0), ("q", 0.5), ("r", None), ("s", 1.0)])
    second = run("b", [("q", 0.0), ("q", 1.0), ("p", 1.0), ("r", 1.0), ("t", 1.0)])
    one, two = compare.read([first, second])
    differences = [1.0, -1.0, 0.5]  # p, the first q, the second q
    assert compare.paired(two, one) == compare.Paired(3, *interval(differences), better=2, worse=1)
    assert compare.paired(one, two).difference == -compare.paired(two, one).difference


def test_runs_that_share_no_prompt_have_no_difference(run):
    folders = [run("a", [("p", 0.0)]), run("b", [("q", 1.0)])]
    one, two = compare.read(folders)
    assert compare.paired(two, one) is None
    assert "no shared prompts" in shown(compare.show([one, two]))


def test_the_tables(run):
    other = {**CONFIG, "optim": {"lr": 0.5}, "run": {"out": "runs/y", "steps": 8}}
    folders = [run("a", [("p", 0.0)]), run("b", [("p", 1.0)], step=8, config=other, reward=0.7)]
    text = shown(compare.show(compare.read(folders)))
    assert "0.500 [0.400, 0.700]" in text and "0.700 [0.600, 0.900]" in text
    assert "greedy reward less that of a" in text and "1.000 [1.000, 1.000]" in text
    assert "run.steps" in text and "optim.lr" in text and "0.5" in text and "run.out" not in text


def test_defaults_written_out_are_no_difference():
    assert differences([CONFIG, {**CONFIG, "optim": {"schedule": "constant"}}]) == {}
    assert differences([CONFIG, {**CONFIG, "run": {"out": "a", "steps": 4, "seed": 3}}]) == {"run.seed": [0, 3]}


def test_names_tell_runs_apart(tmp_path):
    assert compare.names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert compare.names([tmp_path / "one/a", tmp_path / "two/a"]) == ["one/a", "two/a"]
    assert len(set(compare.names([tmp_path / "a", tmp_path / "a"]))) == 2


def test_the_picture_has_a_colour_for_each_run(run, tmp_path):
    folders = [run("a", [("p", 0.0)]), run("$b$ [bold]", [("p", 1.0)], step=8)]
    result = CliRunner().invoke(app, ["compare", *map(str, folders), "-o", str(tmp_path / "c.png")])
    assert result.exit_code == 0, result.output
    assert "$b$ [bold]" in result.output  # not taken for markup
    pixels = imread(tmp_path / "c.png")[..., :3]
    for colour in ((0, 0x72, 0xB2), (0xE6, 0x9F, 0)):
        assert (abs(pixels * 255 - colour).max(axis=-1) < 2).sum() > 100


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """A function: {label of a panel: {name in its legend: first numbers of its line}} of runs."""

    def draw(*folders):
        figures = []
        monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
        compare.draw(folders, tmp_path / "c.png")
        return {axis.get_ylabel(): dict(zip(*reversed(legend(axis)), strict=True)) for axis in figures[0].axes}

    def legend(axis):
        lines, names = axis.get_legend_handles_labels()
        shown = axis.get_legend()  # none where nothing is drawn
        assert [text.get_text() for text in (shown.get_texts() if shown else ())] == names
        return [list(line.get_ydata()) for line in lines], names

    return draw


def test_a_run_is_drawn_in_the_panels_of_its_kind(run, drawn, tmp_path):
    """Runs on pairs; one that was killed before its first evaluation, within a line; a name that begins so."""
    pairs, killed, rewards = tmp_path / "pairs", tmp_path / "_killed", run("rewards", [("p", 0.0)], step=2)
    for folder, rows in ((pairs, [{"step": 0, "eval/pairs/loss": 0.7}, {"step": 1, "loss": 0.6}]), (killed, [])):
        folder.mkdir()
        _write(folder / "metrics.jsonl", rows or [{"step": 1, "reward/mean": 0.25, "response/length": 3.0}])
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "reward/me')
    found = drawn(rewards, pairs, killed)
    assert found["reward"] == {"rewards": [0.1, 0.5], " _killed": [0.25]}
    assert found["loss"] == {"pairs": [0.7]} and found["accuracy"] == {} and "accuracy" not in found["reward"]
    text = shown(compare.show(compare.read([rewards, pairs, killed])))
    assert "none" in text and "no config.yaml in pairs, _killed" in text
    assert text.count("no shared prompts with a greedy reward") == 2


def test_long_keys_and_names_are_not_cut(run):
    long = "a_name_of_a_run_that_is_longer_than_a_column_of_eighty_characters_has_room_for"
    folders = [run("a", [("p", 0.0)]), run(long, [("p", 1.0)], config={**CONFIG, "sampling": {"deadline_s": 7.0}})]
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(compare.show(compare.read(folders)))
    text = console.export_text()
    columns = [[cell.strip() for cell in line.split("\u2502")] for line in text.splitlines()]
    assert "\u2026" not in text and "sampling.deadline_s" in "".join(row[1] for row in columns if len(row) > 2)


def test_a_folder_that_is_no_run_is_named(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for folders, words in (([run("a", []), tmp_path / "empty"], "empty/metrics.jsonl: there is no line"),):
        result = CliRunner().invoke(app, ["compare", *map(str, folders), "-o", str(tmp_path / "c.png")])
        assert result.exit_code == 1 and words in result.output
    result = CliRunner().invoke(app, ["compare", str(tmp_path / "a")])
    assert result.exit_code == 1 and "two runs" in result.output


def test_nothing_of_a_run_acts_on_the_terminal(run):
    for number, text in enumerate(ESCAPES.values()):
        config = {**CONFIG, "model": {"policy": text.encode("utf-8", "replace").decode()}}
        folders = [run(f"a{number}", [("p", 0.0)]), run(f"b{number}", [("p", 1.0)], config=config)]
        assert not acting(shown(compare.show(compare.read(folders))))
