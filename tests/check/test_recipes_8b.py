"""The recipes of real use, which nobody has run: they pass what can be checked without hub and GPU."""

import re

import pytest
import yaml
from support import hub_rows
from support.paths import ROOT

from align.check import models
from align.check.report import checkup
from rewards import hub, math

RECIPES = sorted((ROOT / "recipes").glob("*_8b.yaml"))


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    return str(hub_rows.save_described(tmp_path_factory.mktemp("qwen")))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_real_use_passes_its_check(recipe, described, monkeypatch, tmp_path):
    """With rows of the hub's columns and the configuration of its model; what it takes is what its comment says."""
    monkeypatch.chdir(ROOT)  # recipes name each other from there
    monkeypatch.setattr(hub, "load_dataset", hub_rows.load_dataset)
    monkeypatch.setattr(models, "_described", {"Qwen/Qwen3-8B": described}.__getitem__)
    out = f"run.out={tmp_path}/run"
    result = checkup(recipe, [out], ROOT / "launch/zero2.yaml", 80.0)
    assert result["ok"], result["problems"]
    terms = result["facts"]["memory_gib"]
    said = re.search(r"by arithmetic: (.*) GiB of each\.", recipe.read_text())[1]
    assert said == ", ".join(f"{phase} {terms[phase]['total']:.0f}" for phase in terms)
    assert "Not run yet" in recipe.read_text().splitlines()[0]


@pytest.mark.parametrize("recipe", ["gfpo_math_8b", "ktae_d3s_math_8b"])
@pytest.mark.parametrize("section", ["args", "eval_args"])
def test_the_gold_answer_is_where_the_reward_looks_for_it(recipe, section, monkeypatch):
    monkeypatch.setattr(hub, "load_dataset", hub_rows.load_dataset)
    data = yaml.safe_load((ROOT / f"recipes/{recipe}.yaml").read_text())["data"]
    rows = hub.problems(**data[section])
    said = [f"So it is $\\boxed{{{row['answer']}}}$." for row in rows]
    wrong = [f"So it is $\\boxed{{{row['answer']}0}}$." for row in rows]
    for texts, value in ((said, 1.0), (wrong, 0.0)):
        assert set(math.equal(None, texts, None, answer=[row["answer"] for row in rows])) == {value}
    assert all(row["prompt"][0]["content"].endswith(hub.BOXED) for row in rows)


def test_pairs_that_prefer_nothing_are_left_out(monkeypatch):
    monkeypatch.setattr(hub, "load_dataset", hub_rows.load_dataset)
    rows = hub.preferences(path="HuggingFaceH4/ultrafeedback_binarized", split="train_prefs")
    assert len(rows) == 1200 - 3 * 30 and all(row["chosen"] != row["rejected"] for row in rows)


def test_a_missing_column_is_named(monkeypatch):
    monkeypatch.setattr(hub, "load_dataset", hub_rows.load_dataset)
    with pytest.raises(ValueError, match="has no column 'problem'; there are: prompt, solution, data_source"):
        hub.problems(path="open-r1/DAPO-Math-17k-Processed", name="en")
