"""The folder that a run writes to, as the check looks at it."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from align.check.folders import check_apart, check_out, check_writable
from align.config.data_keys import Data
from align.config.recipe_file import ConfigError
from align.system.lock import held


def experiment(out, policy="user/base", guide=None, stages=(), start=None, resume=None, **sources):
    adapter = SimpleNamespace(start=start) if start else None
    model = SimpleNamespace(policy=policy, guide=guide, adapter=adapter)
    run = SimpleNamespace(out=str(out), resume=resume)
    recipe = SimpleNamespace(run=run, model=model, data=sources, sources=lambda: sources)
    return SimpleNamespace(recipe=recipe, stage_recipes=dict.fromkeys(stages, "recipe.yaml"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("out", ["runs/new", ".", "", "there", "to_there", "to_there/new", "runs/" + "n" * 200])
def test_a_folder_that_can_be_made_passes(here, out):
    (here / "there").mkdir()
    (here / "to_there").symlink_to("there")
    before = sorted(here.rglob("*"))
    check_out(experiment(out))
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    "out, told",
    [
        ("runs/a\0b", r"runs/a\\x00b' is no name of a folder: .*null"),
        ("runs/\ud800", "is no name of a folder: .*surrogates"),
        ("runs/" + "n" * 300, "is no name of a folder: a part is longer than 255"),
        ("n" * 300, "is no name of a folder: .*too long"),
        ("file", "file is a file"),
        ("file/run", "file is a file"),
        ("dangling", "dangling is a link to gone, which is not there; make that folder"),
        ("dangling/run", "dangling is a link to gone"),
        ("circle", "circle is a link to circle"),
    ],
)
def test_a_folder_that_cannot_be_made_is_told(here, out, told):
    (here / "file").touch()
    (here / "dangling").symlink_to("gone")
    (here / "circle").symlink_to("circle")
    with pytest.raises(ConfigError, match=told):
        check_writable(here / out)
    with pytest.raises(ConfigError, match=told):
        check_writable(Path(out))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_told(here):
    (here / "theirs").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="theirs is not writable"):
        check_writable(here / "theirs/run")


@pytest.mark.parametrize("key", ["policy", "guide"])
@pytest.mark.parametrize(
    "out, told",
    [("models/m", "is"), ("./models/../models/m/", "is"), ("models/m/run", "is inside"), ("models", "holds"),
     (".", "holds"), ("link", "is"), ("link/run", "is inside")],
)  # fmt: skip
def test_a_model_s_folder_is_not_written_to(here, key, out, told):
    (here / "models/m").mkdir(parents=True)
    (here / "link").symlink_to("models/m")
    with pytest.raises(ConfigError, match=rf"{told} models/m, the folder of model\.{key}, .*name another folder"):
        check_out(experiment(out, **{key: "models/m"}))
    check_out(experiment("models/m2", **{key: "models/m"}))


def test_the_folder_of_a_stage_that_has_not_run_is_not_written_to():
    stage = experiment("runs/dpo", guide="runs/dpo/adapter", stages=["runs/dpo/adapter"])
    with pytest.raises(ConfigError, match="holds runs/dpo/adapter, the folder of model.guide"):
        check_out(stage)
    check_apart(Path("user"), experiment("user"))  # a hub name is no folder


def test_the_adapter_that_a_run_goes_on_from_is_not_moved_away(here):
    (here / "runs/x/adapter").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"runs/x holds runs/x/adapter, the folder of model\.adapter\.from"):
        check_out(experiment("runs/x", start="runs/x/adapter"))
    check_out(experiment("runs/y", start="runs/x/adapter"))


@pytest.mark.parametrize("key", ["prompts", "pairs", "bank", "eval_prompts"])
@pytest.mark.parametrize("name", ["runs/x/there", "link/there", "./runs/../runs/x/there"])
def test_data_that_a_new_run_would_move_away_is_told(here, key, name):
    (here / "runs/x/there").mkdir(parents=True)
    (here / "link").symlink_to("runs/x")
    given = {"prompts": "user/rows", "pairs": None, "bank": None, "eval_prompts": None}
    data, other = Data.model_construct(**given | {key: name}), Data.model_construct(**given)
    with pytest.raises(
        ConfigError, match=rf"which data\.{key} names, is inside runs/x, which a run .* keep it elsewhere"
    ):
        check_out(experiment("runs/x", data=data))
    with pytest.raises(ConfigError, match=rf"which data\.two\.{key} names"):
        check_out(experiment("runs/x", one=other, two=data))
    check_out(experiment("runs/x", data=data, resume="runs/x"))
    check_out(experiment("runs/x", data=data, resume="runs/x/checkpoints/step_3"))
    check_out(experiment("runs/y", data=data))
    check_out(experiment("runs/x", data=other))


def test_a_live_run_is_told_with_its_process(here):
    with held(here / "run"), pytest.raises(ConfigError, match=rf"in use by another run: process {os.getpid()} on "):
        check_out(experiment("run"))
    check_out(experiment("run"))
