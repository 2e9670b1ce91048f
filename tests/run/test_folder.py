"""The folder of a run: one run at a time, what stood there moved away and told, and never taken for one's own."""

import json
from contextlib import ExitStack

import pytest
import yaml
from support.checkpoints import saved

from align.checkpoint import resume
from align.checkpoint.checkpoint import CheckpointError
from align.checkpoint.provenance import resolved, versions
from align.config.experiment import load_experiment
from align.run.folder import noted, set_aside, take, used
from align.run.log import describe
from align.system.lock import HeldError
from align.system.node import Node

RECIPE = {
    "model": {"policy": "some/model"},
    "data": {"prompts": "prompts.jsonl"},
    "rewards": {"rewards.length:length_penalty": 1.0},
    "objective": {"name": "gfpo", "k": 2},
}


@pytest.fixture
def recipe(tmp_path):
    """A recipe that writes to `run`, with overrides."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "run": {"out": str(tmp_path / "run"), "steps": 4}}))
    return lambda *overrides: load_experiment(path, overrides)


def taken(experiment):
    """What a run finds that is killed before it does anything."""
    with ExitStack() as held:
        return take(experiment, Node(), held)


def half_done(recipe, out, *overrides):
    """A run of a recipe that was stopped after two steps."""
    saved(out, 2)
    (out / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 1}\n')
    describe(out, resolved(recipe(*overrides)), versions())


def test_a_run_that_was_killed_while_it_loaded_does_not_take_what_stood_there_before(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    half_done(recipe, out)
    other = recipe("run.seed=1", "optim.lr=0.5")
    assert taken(other) == resume.Origin()
    assert f"{out} held an earlier run, which is now {out}.1" in capsys.readouterr().out
    again = taken(resume.in_place(other))
    assert again.in_place and again.checkpoint is None and again.step == 0
    assert (tmp_path / "run.1/checkpoints/step_2").is_dir() and not (out / "checkpoints").exists()
    for asked in (resume.in_place(recipe()), recipe(f"run.resume={tmp_path / 'run'}")):
        with pytest.raises(CheckpointError, match=r"run holds another run: run\.seed was 1, is 0"):
            taken(asked)


def test_resuming_another_run_is_refused_by_name(recipe, tmp_path):
    half_done(recipe, tmp_path / "run")
    half_done(recipe, tmp_path / "other")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=r"run holds another run: run\.seed was 0, is 1"):
        taken(resume.in_place(recipe("run.seed=1")))
    for place in ("other", "other/checkpoints/step_2"):
        asked = recipe("run.seed=1", f"run.out={tmp_path / 'new'}", f"run.resume={tmp_path / place}")
        with pytest.raises(CheckpointError, match=r"other holds another run: run\.seed was 0, is 1"):
            taken(asked)
    left = {path for path in tmp_path.rglob("*") if not path.name.startswith(".lock")}
    assert left == {*before, tmp_path / "new"}


def test_other_keys_are_noted_where_they_begin(recipe, tmp_path):
    out = tmp_path / "run"
    half_done(recipe, out)
    asked = resume.in_place(recipe("optim.lr=0.5"))
    origin = taken(asked)
    changes = resume.changed(asked, origin)
    assert [str(change) for change in changes] == ["optim.lr was 1e-05, is 0.5"]
    assert "another recipe: optim.lr was 1e-05, is 0.5" in resume.explain(origin, out, 0, {}, {}, changes)
    assert yaml.safe_load((out / "config.yaml").read_text())["optim"]["lr"] == 1e-5  # until it runs
    lines = noted(origin, changes, out)
    assert lines == ["# from step 3 on: optim.lr was 1e-05, is 0.5"]
    describe(out, resolved(asked), versions(), lines)
    assert (out / "config.yaml").read_text().startswith(lines[0])
    assert yaml.safe_load((out / "config.yaml").read_text())["optim"]["lr"] == 0.5
    new = recipe("optim.lr=0.25", f"run.out={tmp_path / 'new'}", f"run.resume={out}")
    assert taken(new).step == 2 and "# from step 3 on: optim.lr was" in (tmp_path / "new/config.yaml").read_text()


def test_two_runs_in_one_folder_are_refused_at_the_start(recipe, tmp_path):
    half_done(recipe, tmp_path / "run")
    with ExitStack() as held:
        take(recipe(), Node(), held)
        before = sorted(tmp_path.rglob("*"))
        for asked in (recipe(), resume.in_place(recipe()), recipe("run.seed=3")):
            with pytest.raises(HeldError, match=r"run is in use by another run: process \d+ on .*, since"):
                taken(asked)
        assert sorted(tmp_path.rglob("*")) == before
    taken(resume.in_place(recipe()))


def test_a_folder_with_other_files_is_left_as_it_is(recipe, tmp_path):
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)  # a mount, perhaps
    (out / "train.log").write_text("told")
    describe(out, resolved(recipe("run.seed=9")), versions())  # of a run that did nothing
    assert not used(out) and taken(recipe()) == resume.Origin()
    assert (out / "train.log").exists() and not (tmp_path / "run.1").exists()
    assert yaml.safe_load((out / "config.yaml").read_text())["run"]["seed"] == 0


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "adapter", "checkpoints/step_3", "rollouts/step_1"])
def test_what_a_run_has_made_is_set_aside(tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    assert used(tmp_path / "run")
    (tmp_path / "run.1").mkdir()
    assert set_aside(tmp_path / "run") == tmp_path / "run.2"


def test_the_folder_that_the_command_runs_in_is_not_moved(tmp_path, monkeypatch):
    (tmp_path / "run/inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run/inside")
    with pytest.raises(CheckpointError, match=r"run holds an earlier run and cannot be renamed: .*name another folder"):
        set_aside(tmp_path / "run")


def test_of_a_link_the_link_is_renamed_and_what_it_leads_to_stays(recipe, tmp_path):
    half_done(recipe, tmp_path / "disk/x")
    (tmp_path / "run").symlink_to("disk/x")
    assert taken(recipe()) == resume.Origin()
    assert (tmp_path / "run.1").readlink().name == "x" and (tmp_path / "disk/x/checkpoints/step_2").is_dir()
    assert (tmp_path / "run").is_dir() and not (tmp_path / "run").is_symlink()


@pytest.mark.parametrize("name", ["metrics.jsonl", "greedy.jsonl"])
@pytest.mark.parametrize("bad", ["{", "[]", '"text"', '{"loss": 1}', '{"step": "one"}', "\0\0"])
def test_a_bad_line_is_named_before_anything_is_loaded(recipe, tmp_path, name, bad):
    half_done(recipe, tmp_path / "run")
    rows = [json.dumps({"step": step, "loss": 1}) for step in (1, 2)]
    (tmp_path / "run" / name).write_text("\n".join([rows[0], bad, rows[1], ""]))
    with pytest.raises(CheckpointError, match=rf"{name}: line 2 cannot be read, .*mend that line or take it out"):
        taken(resume.in_place(recipe()))
    (tmp_path / "run" / name).write_text("\n".join([*rows, bad, ""]))
    assert taken(resume.in_place(recipe())).step == 2  # of a step that is done again


def test_a_run_inside_the_folder_of_another_is_not_resumed_from_there(recipe, tmp_path):
    half_done(recipe, tmp_path / "run/old")
    with pytest.raises(CheckpointError, match=r"run/old is inside run\.out.*name another run\.out"):
        taken(recipe(f"run.resume={tmp_path / 'run/old'}"))
