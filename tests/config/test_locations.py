"""Where paths and modules are looked for: beside the recipe, then in the working directory."""

import sys

import pytest
from support.recipes import BASE, CODE, problems_of

from align.config.experiment import examine, load_experiment
from align.config.locations import clash, find, near


@pytest.fixture
def places(tmp_path, monkeypatch):
    """(the folder of a recipe, the working directory); modules are forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    here, beside = tmp_path / "here", tmp_path / "here" / "deep"
    beside.mkdir(parents=True)
    monkeypatch.chdir(here)
    (beside / "recipe.yaml").write_text(BASE)
    before = set(sys.modules)
    yield beside, here
    for name in set(sys.modules) - before:
        del sys.modules[name]


def text(*changes):
    out = BASE
    for old, new in changes:
        assert out.count(old) == 1
        out = out.replace(old, new)
    return out


@pytest.mark.parametrize("at", [["here"], ["deep"], ["here", "deep"], []])
def test_a_path_is_that_beside_the_recipe_else_that_of_the_working_directory(places, at):
    beside, here = places
    for place in at:
        ({"here": here, "deep": beside}[place] / "p.jsonl").write_text("{}")
    assert find("p.jsonl", "deep") == ("deep/p.jsonl" if "deep" in at else "p.jsonl")
    assert find(str(here / "p.jsonl"), "deep") == str(here / "p.jsonl") and find("", "deep") == ""
    assert find("p.jsonl", "") == "p.jsonl" and find("a\0b" * 2000, "deep") == "a\0b" * 2000


def test_every_path_that_a_recipe_reads_follows_the_rule(places):
    beside, here = places
    for name in ("model", "guide", "bank", "old"):
        (beside / name).mkdir()
    for name in ("pairs.jsonl", "held.jsonl"):
        (beside / name).write_text("{}")
    (beside / "recipe.yaml").write_text(
        "model: {policy: model, guide: guide}\n"
        "data: {pairs: pairs.jsonl, eval_prompts: held.jsonl, bank: bank, args: {prompts: pairs.jsonl}}\n"
        "rewards: {'rewards.length:length_penalty': 1}\n"
        "objective: {name: dpo}\n"
        "run: {steps: 1, out: old, resume: old}\n"
    )
    recipe = load_experiment("deep/recipe.yaml").recipe
    assert (recipe.model.policy, recipe.model.guide) == ("deep/model", "deep/guide")
    data = recipe.data
    assert (data.pairs, data.eval_prompts, data.bank) == ("deep/pairs.jsonl", "deep/held.jsonl", "deep/bank")
    assert data.args == {"prompts": "pairs.jsonl"}  # the user's own
    assert recipe.run.resume == "deep/old" and recipe.run.out == "old"  # what is written stands where the run starts
    sources = ["data={one: {prompts: held.jsonl}, two: {prompts: held.jsonl}}", "objective={grpo: {}, data: one}"]
    several = examine("deep/recipe.yaml", sources).recipe.data
    assert {source.prompts for source in several.values()} == {"deep/held.jsonl"}


def test_a_recipe_of_a_stage_stands_beside_and_finds_its_own_paths(places):
    beside, here = places
    (beside / "base").mkdir()
    (beside / "first.yaml").write_text("model: {policy: base}\nrun: {out: runs/first}\n")
    (beside / "recipe.yaml").write_text(text(("policy: some/model", "policy: {from: first.yaml}")))
    experiment = load_experiment("deep/recipe.yaml")
    assert experiment.recipe.model.policy == "runs/first/model"
    assert experiment.stage_recipes == {"runs/first/model": "deep/first.yaml"}
    (here / "first.yaml").write_text("run: {out: runs/other}\n")
    assert load_experiment("deep/recipe.yaml").recipe.model.policy == "runs/first/model"
    (beside / "first.yaml").unlink()
    assert load_experiment("deep/recipe.yaml").recipe.model.policy == "runs/other/model"


OWN = CODE.replace('"own"', "NAME")


@pytest.mark.parametrize("both", [True, False])
def test_modules_beside_the_recipe_come_before_those_of_the_working_directory(places, both):
    beside, here = places
    (beside / "recipe.yaml").write_text(text(("{name: gfpo, k: 4}", "{'own_code:own_objective': {}}")))
    (here / "own_code.py").write_text(OWN + "NAME = 'of the working directory'\n")
    if both:
        (beside / "own_code.py").write_text(OWN + "from own_helper import NAME\n")
        (beside / "own_helper.py").write_text("NAME = 'beside'\n")
    (made,) = load_experiment("deep/recipe.yaml").objectives
    assert made.name == ("beside" if both else "of the working directory")


CLASHES = [
    ("rewards.py", "rewards.length:length_penalty"),
    ("rewards.py", "rewards:mine"),
    ("rewards/__init__.py", "rewards:mine"),
    ("rewards/mine.py", "rewards.mine:fn"),
    ("code.py", "code:fn"),
]


@pytest.mark.parametrize("at", ["deep", "."])
@pytest.mark.parametrize("file, path", CLASHES)
def test_a_module_with_the_name_of_an_installed_one_is_refused_by_name(places, file, path, at):
    beside, here = places
    (here / at / file).parent.mkdir(exist_ok=True)
    (here / at / file).write_text("def mine(completions, **columns):\n    return [1.0]\n")
    (beside / "recipe.yaml").write_text(text(("rewards.length:length_penalty", path)))
    problems = problems_of(load_experiment, "deep/recipe.yaml")
    name = path.partition(":")[0].partition(".")[0]
    told = (
        f"{(here / at / file).relative_to(here)} has the name of the module {name!r}, which is installed; rename yours"
    )
    assert any(told in problem and problem.startswith("deep/recipe.yaml:") for problem in problems), problems


def test_names_that_are_no_clash(places):
    beside, here = places
    (here / "rewards").mkdir()  # a folder without a module
    (beside / "my_rewards.py").write_text("")
    assert clash("rewards.length:length_penalty", "deep") is None
    assert (
        clash("my_rewards:fn", "deep") is None and clash("12:30", "deep") is None and clash("no path", "deep") is None
    )
    assert load_experiment("deep/recipe.yaml").rewards


def test_the_nearest_file_is_looked_for_in_both_folders(places):
    beside, here = places
    (beside / "prompts.jsonl").write_text("{}")
    (here / "questions.jsonl").write_text("{}")
    assert near("prompt.jsonl", "deep") == "; did you mean 'prompts.jsonl'?"
    assert near("question.jsonl", "deep") == "; did you mean 'questions.jsonl'?"
    assert near("xyz", "deep") == near("nowhere/prompts.jsonl", "deep") == ""
