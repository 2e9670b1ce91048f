"""An experiment out of a recipe: defaults, rewards and their names. Any recipe loads or is explained."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import PYTHONPATH, ROOT
from support.recipes import BASE, rewards

from align.config.experiment import load_experiment
from align.config.recipe_file import ConfigError


def test_rewards_get_arguments_weights_and_distinct_names(recipe):
    listed = """
  - {fn: "user_code:correct"}
  - {fn: "user_code:correct_2", weight: -0.5}
  - {fn: "user_code:correct"}
  - {fn: "user_code:correct_2"}
  - {fn: "user_code:biggest", args: {floor: 7}}"""
    experiment = recipe(rewards(listed))
    names = [reward.name for reward in experiment.rewards]
    assert names[:2] == ["correct", "correct_2"] and names[4] == "biggest" and len(set(names)) == 5
    assert [reward.weight for reward in experiment.rewards] == [1.0, -0.5, 1.0, 1.0, 1.0]
    assert experiment.rewards[4].args == {"floor": 7}


def test_names_stay_distinct_where_a_function_has_the_name_of_another_with_its_number(recipe):
    listed = "\n  - {fn: 'user_code:correct'}\n  - {fn: 'user_code:correct_2'}\n  - {fn: 'user_code:correct'}"
    assert len({reward.name for reward in recipe(rewards(listed)).rewards}) == 3


# ---- what the descriptions of the keys say


def test_defaults(recipe):
    experiment = recipe()
    got = experiment.recipe
    assert got.model.adapter is None  # "Without this section all weights are trained."
    assert (experiment.correct.reward, experiment.correct.at_least) == ("length_penalty", 1.0)  # "the first reward"
    assert (got.data.holdout, got.sampling.old_logprob, got.sampling.sync, got.hub) == (0, "sampler", None, None)


def test_correct_names_a_reward_with_or_without_its_module(recipe):
    two = rewards("{'rewards.length:length_penalty': 1, 'user_code:correct': 1}")
    for name in ("correct", "'user_code:correct'"):
        experiment = recipe(two, f"correct: {{reward: {name}, at_least: 0.5}}\n")
        assert (experiment.correct.reward, experiment.correct.at_least) == ("correct", 0.5)


def test_the_recipes_of_the_checkout_load():
    found = sorted((ROOT / "recipes").glob("*.yaml"))
    assert found
    for path in found:
        assert load_experiment(path).objectives


def test_loading_a_recipe_needs_no_engine():
    """Bad input stops before a model is loaded: not even the libraries are."""
    heavy = ["transformers", "vllm", "deepspeed", "accelerate", "peft", "trl", "datasets"]
    code = f"import sys, json, align.config.experiment; print(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
    env = {**os.environ, "PYTHONPATH": PYTHONPATH}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert json.loads(shown.stdout) == []


# ---- whatever stands anywhere in a recipe, it loads or its problems are named


PLACES = [
    *[(section,) for section in ("model", "data", "sampling", "rewards", "objective", "objectives", "run", "hub", "x")],
    *[("model", key) for key in ("policy", "adapter", "dtype", "x")],
    *[("sampling", key) for key in ("group_size", "temperature", "engine", "sync", "compile")],
    *[("objective", key) for key in ("name", "k", "metric", "aggregation", "weight", "add", "chain", "loss", "gfpo")],
    *[("run", key) for key in ("steps", "seed", "trackers", "out")],
    *[("eval", "pass_at"), ("optim", "lr"), ("data", "args"), ("correct", "reward"), ("hub", "repo")],
]

WORDS = ["gfpo", "grpo", "keep_top", "group_advantage", "entropy_bonus", "k", "name", "x", "vllm", "easy", "a:b", "int"]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10) | st.floats() | st.sampled_from(WORDS) | st.just(""),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.integers(0, 2), inner),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=2))
def test_every_recipe_loads_or_names_its_problems(folder, changes):
    data = yaml.safe_load(BASE)
    for place, value in changes:
        here = data
        for key in place[:-1]:
            here = here.setdefault(key, {}) if isinstance(here.get(key, {}), dict) else {}
        here[place[-1]] = value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    try:
        experiment = load_experiment(path)
    except ConfigError as error:
        assert error.problems and all(p.startswith(f"{path}:") for p in error.problems)
        assert len(set(error.problems)) == len(error.problems)
    else:
        assert experiment.objectives and experiment.rewards
