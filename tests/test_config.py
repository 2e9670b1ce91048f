"""align.config: every mistake in a recipe is reported with its place and its fix, all of them at once."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import loss_of, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from align.config.compose import with_defaults
from align.config.experiment import load_experiment
from align.config.factories import load_object
from align.config.hub_name import check_repo_name
from align.config.problems import models_in
from align.config.recipe import Recipe, Reward
from align.config.recipe_file import ConfigError
from align.losses.loss import Constant
from align.objectives import gfpo, grpo

BASE = """\
model:
  policy: some/model
data:
  prompts: prompts.jsonl
sampling:
  group_size: 8
rewards:
  rewards.length:length_penalty: 1.0
objective: {name: gfpo, k: 4}
run:
  steps: 2
  out: runs/test
"""

# Python code that recipes of these tests name by dotted path
CODE = """\
from align.transforms import Transform, group_advantage
from align.losses import clipped_surrogate
from align.objectives import Objective

number = 3

def correct(prompts, completions, **columns):
    return [1.0] * len(prompts)

correct_2 = correct

def biggest(prompts, completions, *, floor, **columns):
    return [float(floor)] * len(prompts)

def own_link(*, strength: int = 1) -> Transform:
    return Transform("own_link", lambda batch: batch)

def early(**args):
    return Transform("early", lambda batch: batch, needs=("advantage",))

def own_objective(*, eps: float = 0.0) -> Objective:
    return Objective("own", (group_advantage(eps=eps),), (clipped_surrogate(),))

def moody(*, x: int = 0) -> Objective:
    raise ValueError(f"x = {x} is odd")
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A function: loads the base recipe with text replaced or appended, and with overrides."""
    (tmp_path / "user_code.py").write_text(CODE)
    (tmp_path / "broken_code.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)

    def load_changed(*changes, overrides=()):
        text = BASE
        for change in changes:
            if isinstance(change, tuple):
                assert text.count(change[0]) == 1, change
                text = text.replace(*change)
            else:
                text += change
        (tmp_path / "recipe.yaml").write_text(text)
        return load_experiment(tmp_path / "recipe.yaml", overrides)

    yield load_changed
    sys.modules.pop("user_code", None)


def problems_of(action, *args, **kwargs) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        action(*args, **kwargs)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def objective(text):
    return "{name: gfpo, k: 4}", text


def model(text):
    return "policy: some/model", f"policy: some/model\n  {text}"


def sampling(text):
    return "group_size: 8", f"group_size: 8\n  {text}"


def run(text):
    return "steps: 2", f"steps: 2\n  {text}"


def rewards(text):
    return "rewards:\n  rewards.length:length_penalty: 1.0\n", f"rewards: {text}\n"


CHAIN = "chain: [{group_advantage: {}}]"
LOSS = "loss: {clipped_surrogate: {}}"
WRONG_KEY = "unknown key; did you mean"

# (change, line, key, part of the message)
BAD = [
    # unknown keys, at every depth
    ("modl: {}\n", 13, "modl", f"{WRONG_KEY} 'model'?"),
    (("group_size", "gruop_size"), 6, "sampling.gruop_size", f"{WRONG_KEY} 'group_size'?"),
    (sampling("zzz: 1"), 7, "sampling.zzz", "unknown key; there are: cache_gib, compile, deadline_s, "),
    (model("adapter: {rnk: 8}"), 3, "model.adapter.rnk", f"{WRONG_KEY} 'rank'?"),
    (rewards("\n  - {fn: 'user_code:correct', wieght: 2}"), 8, "rewards.0.wieght", f"{WRONG_KEY} 'weight'"),
    ("hub: {repo: a/b, privat: true}\n", 13, "hub.privat", f"{WRONG_KEY} 'private'?"),
    (objective("{name: gfpo, k: 4, metrc: shortest}"), 9, "objective.metrc", f"{WRONG_KEY} 'metric'"),
    (objective("{gfpo: {k: 4, metrc: shortest}}"), 9, "objective.gfpo.metrc", f"{WRONG_KEY} 'metric'?"),
    (objective("{name: gfpo, k: {very_hrd: 4}}"), 9, "objective.k.very_hrd", f"{WRONG_KEY} 'very_hard'?"),
    (
        objective(f"{{chain: [{{keep_top: {{k: 4, metrc: x}}}}, {{group_advantage: {{}}}}], {LOSS}}}"),
        9,
        "objective.chain.0.keep_top.metrc",
        f"{WRONG_KEY} 'metric'?",
    ),
    (
        objective(f"{{{CHAIN}, loss: {{clipped_surrogate: {{clp_low: 0.1}}}}}}"),
        9,
        "objective.loss.clipped_surrogate.clp_low",
        f"{WRONG_KEY} 'clip_low'?",
    ),
    (
        objective("{name: gfpo, k: 4, add: [{kl_policy_ref: {coef: 1, rwos: all}}]}"),
        9,
        "objective.add.0.kl_policy_ref.rwos",
        f"{WRONG_KEY} 'rows'?",
    ),
    (objective(f"{{{CHAIN}, {LOSS}, wieght: 2}}"), 9, "objective.wieght", f"{WRONG_KEY} 'weight'?"),
    ("Model: {}\n", 13, "Model", f"{WRONG_KEY} 'model'?"),
    ("optim:\n  int: 1\n", 14, "optim.int", "unknown key; there are: layout, lr,"),
    # misplaced keys
    ("optim:\n  steps: 9\n", 14, "optim.steps", "unknown key; it belongs at run.steps"),
    (run("temperature: 1"), 12, "run.temperature", "belongs at sampling.temperature or eval.temperature"),
    ("lr: 0.1\n", 13, "lr", "unknown key; it belongs at optim.lr"),
    (model("rank: 8"), 3, "model.rank", "unknown key; it belongs at model.adapter.rank"),
    (run("hub: a/b"), 12, "run.hub", "unknown key; it belongs at the top level"),
    ("optim: {clip_low: 0.1}\n", 13, "optim.clip_low", "it belongs at objective.clip_low"),
    (
        objective("{name: gfpo, k: 4, group_size: 8}"),
        9,
        "objective.group_size",
        "unknown key; it belongs at sampling.group_size",
    ),
    # types
    (("steps: 2", "steps: ten"), 11, "run.steps", "valid integer, unable to parse string as an int"),
    (("group_size: 8", "group_size: 8.5"), 6, "sampling.group_size", "valid integer, got a number with a fr"),
    (("some/model", "[a, b]"), 2, "model.policy", "should be a valid string, but it is ['a', 'b']"),
    (sampling("compile: maybe"), 7, "sampling.compile", "valid boolean, unable to interpret input"),
    (("policy: some/model", "- x"), 1, "model", "valid dictionary or instance of Model, but it is ["),
    (("sampling:\n  group_size: 8\n", "sampling:\n"), 5, "sampling", "but it is None"),
    (sampling("engine: vlm"), 7, "sampling.engine", "'vllm' or 'transformers', but it is 'vlm'"),
    (run("trackers: [tensorbord]"), 12, "run.trackers.0", "'trackio', 'tensorboard' or 'wandb', but it is"),
    (run("trackers: wandb"), 12, "run.trackers", "valid list, but it is 'wandb'"),
    (objective("{name: gfpo, k: four}"), 9, "objective.k", "valid integer, unable to parse string"),
    (objective("{gfpo: [4]}"), 9, "objective.gfpo", "takes a mapping of its arguments, but it is [4]"),
    (objective("{gfpo: {4: 4}}"), 9, "objective.gfpo", "takes a mapping of its arguments, but it is {4: 4}"),
    (objective("{name: gfpo, k: 4, weight: x}"), 9, "objective.weight", "must be a number above 0"),
    (objective("{name: grpo, std: smple}"), 9, "objective.std", "'population', 'sample' or 'none', but it is 'smple'"),
    (objective("{name: grpo, aggregation: mean}"), 9, "objective.aggregation", "'seq-mean-token-sum', but"),
    # ranges
    (objective("{name: gfpo, k: 1}"), 9, "objective.k", "greater than or equal to 2, but it is 1"),
    (objective("{name: gfpo, k: {easy: 1}}"), 9, "objective.k.easy", "greater than or equal to 2, but it is 1"),
    (objective("{name: gfpo, k: 9}"), 9, "objective", "k = 9 of a group of 8: k must be at most the group s"),
    (objective("{name: gfpo, k: {very_hard: 9}}"), 9, "objective", "k = 9 of a group of 8"),
    ("optim: {lr: -1}\n", 13, "optim.lr", "should be greater than 0, but it is -1"),
    ("optim: {lr: .nan}\n", 13, "optim.lr", "but it is nan"),
    ("optim: {lr: .inf}\n", 13, "optim.lr", "should be a finite number, but it is inf"),
    ("optim: {max_grad_norm: 0}\n", 13, "optim.max_grad_norm", "should be greater than 0, but it"),
    ("optim: {weight_decay: -0.1}\n", 13, "optim.weight_decay", "greater than or equal to 0, but"),
    (sampling("temperature: 0"), 7, "sampling.temperature", "greater than 0, but it is 0"),
    (("group_size: 8", "group_size: 1"), 6, "sampling.group_size", "must be at least 2: "),
    (objective("{name: grpo, clip_low: 1}"), 9, "objective.clip_low", "should be less than 1, but it is 1"),
    (objective("{name: grpo, eps: -1}"), 9, "objective.eps", "greater than or equal to 0, but it is -1"),
    (objective("{grpo: {aggregation: {constant: 0}}}"), 9, "objective.grpo.aggregation.constant", "than 0"),
    (objective("{name: grpo, add: [{entropy_bonus: {coef: 0}}]}"), 9, "objective.add.0.entropy_bonus.coef", "0"),
    (objective("{name: gfpo, k: 4, weight: 0}"), 9, "objective.weight", "above 0, but it is 0"),
    (objective("{name: gfpo, k: 4, weight: .nan}"), 9, "objective.weight", "above 0, but it is nan"),
    (("penalty: 1.0", "penalty: .nan"), 8, "rewards.rewards.length:length_penalty", "finite number"),
    (("steps: 2", "steps: 0"), 11, "run.steps", "greater than or equal to 1, but it is 0"),
    (run("seed: -1"), 12, "run.seed", "greater than or equal to 0, but it is -1"),
    (run("seed: 2147483649"), 12, "run.seed", "less than or equal to 2147483648, but it is"),
    ("eval: {pass_at: [0]}\n", 13, "eval.pass_at.0", "greater than or equal to 1, but it is 0"),
    ("eval: {pass_at: []}\n", 13, "eval.pass_at", "at least 1 item"),
    (model("adapter: {targets: []}"), 3, "model.adapter.targets", "at least 1 item"),
    # missing
    (("  steps: 2\n", ""), 10, "run.steps", "missing; this key is needed"),
    (objective("{name: gfpo}"), 9, "objective.k", "missing; this key is needed"),
    (objective("{name: grpo, add: [{kl_policy_ref: {}}]}"), 9, "objective.add.0.kl_policy_ref.coef", "mis"),
    ("hub: {private: true}\n", 13, "hub.repo", "missing; this key is needed"),
    (objective(f"{{{CHAIN}}}"), 9, "objective", "missing loss"),
    (objective(f"{{{LOSS}}}"), 9, "objective", "missing chain"),
    # objectives
    ("objectives: [{grpo: {}}]\n", 9, "objective", "write one of objective and objectives"),
    (objective(""), 9, "objective", "write one of objective and objectives"),
    (objective("{name: grpoo}"), 9, "objective.name", "unknown name 'grpoo'; did you mean 'grpo'?"),
    (objective("{gfpoo: {}}"), 9, "objective.gfpoo", "unknown name 'gfpoo'; did you mean 'gfpo'?"),
    (objective("{name: [gfpo]}"), 9, "objective.name", "unknown name ['gfpo']; did you mean 'gfpo'?"),
    (objective("{gfpo: {k: 4}, grpo: {}}"), 9, "objective", "needs a name, or a chain with a loss"),
    (
        objective(f"{{chain: [{{keep_tpo: {{k: 4}}}}, {{group_advantage: {{}}}}], {LOSS}}}"),
        9,
        "objective.chain.0.keep_tpo",
        "unknown name 'keep_tpo'; did you mean 'keep_top'?",
    ),
    (
        objective(f"{{{CHAIN}, loss: {{clipped_surogate: {{}}}}}}"),
        9,
        "objective.loss.clipped_surogate",
        "unknown name 'clipped_surogate'; did you mean 'clipped_surrogate'?",
    ),
    (
        objective(f"{{chain: [{{entropy_bonus: {{coef: 1}}}}], {LOSS}}}"),
        9,
        "objective.chain.0.entropy_bonus",
        "unknown name 'entropy_bonus'; did you mean 'top_tokens'?",
    ),
    (
        objective("{name: grpo, add: [{kl_policy: {coef: 1}}]}"),
        9,
        "objective.add.0.kl_policy",
        "unknown name 'kl_policy'; did you mean 'kl_policy_ref'?",
    ),
    (objective(f"{{chain: [group_advantage], {LOSS}}}"), 9, "objective.chain", "a list such as [{keep_"),
    (objective("{name: grpo, add: entropy_bonus}"), 9, "objective.add", "takes a list such as [{keep_"),
    (
        objective(f"{{chain: [{{keep_top: {{k: 4}}}}], {LOSS}}}"),
        9,
        "objective",
        "clipped_surrogate reads advantage, which no link before it gives; put group_advantage before it",
    ),
    (
        objective(f"{{chain: [{{'user_code:early': {{}}}}, {{group_advantage: {{}}}}], {LOSS}}}"),
        9,
        "objective",
        "early reads advantage, which no link before it gives; put group_advantage before it",
    ),
    # dotted paths
    (objective("{'usr_code:own': {}}"), 9, "objective.usr_code:own", "cannot import 'usr_code' for 'usr_"),
    (objective("{name: 'user_code:nope'}"), 9, "objective.name", "module 'user_code' has no attribute 'no"),
    (objective("{name: 'user_code:number'}"), 9, "objective.name", "user_code:number is not a function"),
    (objective("{name: 'builtins:dict'}"), 9, "objective.name", "builtins:dict is not a function"),
    (
        objective("{'user_code:own_link': {}}"),
        9,
        "objective.user_code:own_link",
        "user_code:own_link returned a Transform, which cannot stand here",
    ),
    (objective("{name: 'user_code:own_objective', eps: x}"), 9, "objective.eps", "valid number, unable"),
    (objective("{name: 'user_code:moody', x: 3}"), 9, "objective", "x = 3 is odd"),
    (objective("{name: 'broken_code:x'}"), 9, "objective.name", "importing it raised ZeroDivisionError: d"),
    # rewards
    (rewards("{}"), 7, "rewards", "is empty; name at least one reward function"),
    (rewards("[]"), 7, "rewards", "is empty; name at least one reward function"),
    (rewards(""), 7, "rewards", "but it is None"),
    (rewards("{user_code.correct: 1}"), 7, "rewards.user_code.correct", "write package.module:name"),
    (rewards("{':correct': 1}"), 7, "rewards.:correct", "write package.module:name"),
    (rewards("{'a b:correct': 1}"), 7, "rewards.a b:correct", "write package.module:name"),
    (rewards("{'usr:correct': 1}"), 7, "rewards.usr:correct", "cannot import 'usr' for 'usr:correct'; is it"),
    (rewards("[{fn: 'user_code:corect'}]"), 7, "rewards.0.fn", "module 'user_code' has no attribute 'corec"),
    (rewards("{'user_code:number': 1}"), 7, "rewards.user_code:number", "is not a function"),
    (("penalty: 1.0", "penalty: big"), 8, "rewards.rewards.length:length_penalty", "valid number, unabl"),
    (rewards("{'broken_code:x': 1}"), 7, "rewards.broken_code:x", "importing it raised ZeroDivisionErro"),
    ("correct: {reward: penalty}\n", 13, "correct.reward", "no reward is called 'penalty'; did you mean 'length_"),
    # rules between sections
    (sampling("sync: adapter"), 7, "sampling.sync", "adapter needs model.adapter; write merged, or leave"),
    (
        sampling("engine: transformers\n  sync: merged"),
        8,
        "sampling.sync",
        "the transformers engine shares the weights; leave it out",
    ),
    ("eval: {pass_at: [1, 8]}\n", 13, "eval.pass_at", "pass@8 needs as many eval.samples; there are 4"),
    (
        ("prompts: prompts.jsonl", "prompts: p.jsonl\n  eval_prompts: e.jsonl\n  holdout: 2"),
        6,
        "data.holdout",
        "leave it out where eval_prompts are given",
    ),
    # hub
    ("hub: name\n", 13, "hub", "hub repository 'name' must be written user/name"),
    ("hub: {repo: a/b/c}\n", 13, "hub", "hub repository 'a/b/c' must be written user/name"),
    ("hub: a/b c\n", 13, "hub", "'a/b c'"),
    # YAML
    (sampling("group_size: 4"), 7, "sampling.group_size", "stands twice; keep one"),
    ("model: {policy: x}\n", 13, "model", "stands twice; keep one"),
    (objective("{name: gfpo, k: 4, k: 5}"), 9, "objective.k", "stands twice; keep one"),
]


@pytest.mark.parametrize("change, line, key, message", BAD, ids=[f"{case[2]}: {case[3]}" for case in BAD])
def test_bad_input_names_file_line_key_and_fix(recipe, tmp_path, change, line, key, message):
    (problem,) = problems_of(recipe, change)
    assert problem.startswith(f"{tmp_path}/recipe.yaml:{line}: {key}: "), problem
    assert message in problem


@pytest.mark.parametrize(
    "text, message",
    [
        (BASE + "optim: {lr: 1\n", "not valid YAML: while parsing a flow mapping"),
        (BASE + "optim:\n\tlr: 1\n", "line 14"),
        (BASE + "x: @y\n", "not valid YAML"),
        ("- model\n", "a recipe is a mapping with keys such as model, data, objective"),
        ("model\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        (b"\xff\xfe", "not valid YAML"),
    ],
)
def test_not_a_recipe(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (problem,) = problems_of(load_experiment, path)
    assert problem.startswith(f"{path}: ") and message in problem


def test_importance_weights_that_would_count_twice(recipe, tmp_path):
    transform = objective("{name: grpo, add: [{importance_weight: {}}]}")
    (problem,) = problems_of(recipe, transform, sampling("old_logprob: sampler"))
    assert problem.startswith(f"{tmp_path}/recipe.yaml:7: sampling.old_logprob: importance_weight needs sampling.old_")
    assert problems_of(recipe, transform) == [problem.replace(":7:", ":5:")]  # the section, where the default rules


def test_neither_objective_nor_objectives(recipe, tmp_path):
    problems = problems_of(recipe, ("objective: {name: gfpo, k: 4}\n", ""))
    assert problems == [f"{tmp_path}/recipe.yaml: objective: write one of objective and objectives"]


@pytest.mark.parametrize("value, wants", [("gfpo", "{name: gfpo, k: 4}"), ("[gfpo]", "{name: gfpo, k: 4}")])
def test_an_objective_that_is_no_mapping(recipe, value, wants):
    assert any(wants in problem for problem in problems_of(recipe, objective(value)))


@pytest.mark.parametrize("value", ["{gfpo: {k: 4}}", "[]", "gfpo"])
def test_objectives_that_are_no_list(recipe, value):
    problems = problems_of(recipe, ("objective: {name: gfpo, k: 4}", f"objectives: {value}"))
    assert any(":9: objectives: takes a list such as [{gfpo: {k: 4}" in problem for problem in problems)


def test_a_missing_section(recipe, tmp_path):
    problems = problems_of(recipe, ("model:\n  policy: some/model\n", ""))
    assert problems == [f"{tmp_path}/recipe.yaml: model: missing; this key is needed"]


def test_keys_that_exclude_each_other(recipe):
    both = objective("{name: grpo, aggregation: {tokens_per_row: 4, constant: 4}}")
    problems = problems_of(recipe, both)
    assert {problem.split(": ", 2)[1] for problem in problems} == {
        "objective.aggregation.tokens_per_row",
        "objective.aggregation.constant",
    }
    assert all("does not go with the keys beside it; leave one out" in problem for problem in problems)


def test_a_tracker_that_is_not_installed(recipe, monkeypatch):
    monkeypatch.setattr("align.config.rules.importlib.util.find_spec", lambda name: None)
    (problem,) = problems_of(recipe, run("trackers: [wandb]"))
    assert ":12: run.trackers.0: wandb is not installed; pip install wandb" in problem


# ---- all problems at once

MANY = """\
model: {policy: some/model, rank: 8}
data: {prompts: p.jsonl, holdout: 4, eval_prompts: e.jsonl}
sampling: {group_size: 8, sync: adapter}
rewards:
  - {fn: "usr_code:correct"}
  - {fn: "user_code:corect"}
objectives:
  - {gfpo: {k: 1, metrc: shortest}}
  - {gppo: {}}
  - chain: [{keep_top: {k: 0}}, {group_advntage: {}}]
    loss: {clipped: {}}
optim: {lr: -1}
eval: {pass_at: [8]}
run: {steps: 0, seed: x, temperature: 1}
hub: name
"""


def test_all_problems_are_reported_in_one_go(recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(MANY)
    found = {tuple(p.removeprefix(f"{path}:").split(": ")[:2]) for p in problems_of(load_experiment, path)}
    assert found == {
        ("1", "model.rank"),
        ("2", "data.holdout"),
        ("5", "rewards.0.fn"),
        ("6", "rewards.1.fn"),
        ("8", "objectives.0.gfpo.k"),
        ("8", "objectives.0.gfpo.metrc"),
        ("9", "objectives.1.gppo"),
        ("10", "objectives.2.chain.0.keep_top.k"),
        ("10", "objectives.2.chain.1.group_advntage"),
        ("11", "objectives.2.loss.clipped"),
        ("12", "optim.lr"),
        ("13", "eval.pass_at"),
        ("14", "run.out"),
        ("14", "run.steps"),
        ("14", "run.seed"),
        ("14", "run.temperature"),
        ("15", "hub"),
    }


def test_rules_between_sections_are_reported_together(recipe):
    changes = [
        sampling("sync: adapter"),
        objective("{name: gfpo, k: 9, add: [{importance_weight: {}}]}"),
        "eval: {pass_at: [5]}\nhub: x\ncorrect: {reward: y}\n",
    ]
    keys = {problem.split(": ")[1] for problem in problems_of(recipe, *changes)}
    assert keys == {"sampling.sync", "sampling.old_logprob", "objective", "eval.pass_at", "hub", "correct.reward"}


def test_each_of_several_objectives_is_checked_against_the_group(recipe):
    several = ("objective: {name: gfpo, k: 4}", "objectives:\n  - grpo: {}\n  - gfpo: {k: 9}\n  - gfpo: {k: 10}")
    first, second = problems_of(recipe, several)
    assert ":11: objectives.1: keep_top: k = 9 of a group of 8" in first
    assert ":12: objectives.2: keep_top: k = 10 of a group of 8" in second


# ---- overrides

BAD_OVERRIDES = [
    ("run.stps=3", "run.stps", "unknown key; did you mean 'steps'?"),
    ("optim.steps=3", "optim.steps", "unknown key; it belongs at run.steps"),
    ("optm.lr=3", "optm", "unknown key; did you mean 'optim'?"),
    ("run.steps=ten", "run.steps", "valid integer"),
    ("run.steps=", "run.steps", "but it is None"),
    ("optim.lr=-3e-4", "optim.lr", "should be greater than 0"),
    ("sampling.group_size=1", "sampling.group_size", "must be at least 2: group_advantage compares"),
    ("sampling.group_size=0", "sampling.group_size", "greater than or equal to 1"),
    ("sampling=null", "sampling", "but it is None"),
    ("objective.k=1", "objective.k", "greater than or equal to 2, but it is 1"),
    ("objective={name: gfpo, k: 1}", "objective.k", "greater than or equal to 2, but it is 1"),
    ("objective.metrc=shortest", "objective.metrc", "did you mean 'metric'?"),
    ("run.steps.x=3", "run.steps.x", "'steps' is not a section"),
    ("run.steps={", "run.steps", "not a YAML value: '{'"),
    ("run.steps", "'run.steps'", "write key=value, for example run.steps=10"),
    ("=3", "'=3'", "write key=value, for example run.steps=10"),
    ("hub=x", "hub", "must be written user/name"),
]


@pytest.mark.parametrize("override, key, message", BAD_OVERRIDES, ids=[case[0] for case in BAD_OVERRIDES])
def test_bad_overrides_name_the_command_line(recipe, override, key, message):
    (problem,) = problems_of(recipe, overrides=[override])
    assert problem.startswith(f"command line: {key}: ") and message in problem


def test_all_bad_overrides_are_reported(recipe):
    problems = problems_of(recipe, overrides=["run.steps", "run.seed={", "run.steps=3"])
    assert len(problems) == 2 and "'run.steps'" in problems[0] and "run.seed" in problems[1]


def test_overrides_apply(recipe):
    words = ["run.steps=10", "optim.lr=3e-4", "objective.k=6", "model.adapter.rank=4", "eval.pass_at=[1, 2]"]
    experiment = recipe(overrides=[*words, "rewards={'user_code:correct': 2}", "run.seed=1", "run.seed=2"])
    got = experiment.recipe
    assert (got.run.steps, got.optim.lr, got.run.seed) == (10, 3e-4, 2)  # of two, the last counts
    assert (got.model.adapter.rank, got.model.policy, got.eval.pass_at) == (4, "some/model", [1, 2])
    assert [(r.name, r.weight) for r in experiment.rewards] == [("correct", 2.0)]
    assert experiment.file.data["objective"]["k"] == 6
    assert same(experiment.objectives[0], gfpo(k=6)) and not same(experiment.objectives[0], gfpo(k=4))


def test_an_override_may_hold_an_equals_sign(recipe):
    assert recipe(overrides=["run.out=runs/a=b"]).recipe.run.out == "runs/a=b"


# ---- good input


def same(objective, other, groups=3):
    """Whether two objectives credit, weigh and differentiate 24 random responses alike."""
    for seed in range(3):
        batch, logprob = random_batch(seed, groups=groups, size=8)
        entropy = torch.rand(logprob.shape, dtype=logprob.dtype)
        pair = [loss_of(o, batch, logprob, entropy) for o in (objective, other)]
        if not all(torch.equal(a, b) for a, b in zip(*pair, strict=True)):
            return False
    return True


FORMS = [
    "{name: gfpo, k: 4, eps: 0.5, clip_high: 0.28}",
    "{gfpo: {k: 4, eps: 0.5, clip_high: 0.28}}",
    "{chain: [{keep_top: {k: 4}}, {group_advantage: {eps: 0.5}}], loss: {clipped_surrogate: {clip_high: 0.28}}}",
    "{chain: {keep_top: {k: 4}, group_advantage: {eps: 0.5}}, loss: [{clipped_surrogate: {clip_high: 0.28}}]}",
    "{name: 'align.objectives:gfpo', k: 4, eps: 0.5, clip_high: 0.28}",
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_objective(recipe, form):
    (built,) = recipe(objective(form)).objectives
    assert [transform.name for transform in built.chain] == ["keep_top", "group_advantage"]
    assert [loss.name for loss in built.losses] == ["clipped_surrogate"]
    assert same(built, gfpo(k=4, eps=0.5, clip_high=0.28))
    assert not same(built, gfpo(k=4, eps=0.5)) and not same(built, gfpo(k=4, clip_high=0.28))


def test_a_spelled_out_objective_is_named_after_its_links(recipe):
    (built,) = recipe(objective(FORMS[2])).objectives
    assert built.name == "keep_top+group_advantage"


def test_aggregation_with_a_number(recipe):
    (built,) = recipe(objective("{name: grpo, aggregation: {constant: 3}}")).objectives
    assert same(built, grpo(aggregation=Constant(constant=3)))


def test_add_appends_links_and_losses(recipe):
    text = "{name: gfpo, k: 4, add: [{entropy_bonus: {coef: 0.1}}, {keep_top: {k: 3}}, {kl_policy_ref: {coef: 1}}]}"
    (built,) = recipe(objective(text)).objectives
    assert [transform.name for transform in built.chain] == ["keep_top", "keep_top", "group_advantage"]  # at its stage
    assert [loss.name for loss in built.losses] == ["clipped_surrogate", "entropy_bonus", "kl_policy_ref"]
    assert [loss.coef for loss in built.losses] == [1.0, 0.1, 1.0]


def test_own_links_and_objectives_by_dotted_path(recipe):
    text = "{name: 'user_code:own_objective', eps: 0.5, add: [{'user_code:own_link': {strength: 2}}]}"
    (built,) = recipe(objective(text)).objectives
    assert built.name == "own" and [transform.name for transform in built.chain] == ["group_advantage", "own_link"]
    assert same(built, grpo(eps=0.5))


def test_objectives_with_weights(recipe):
    several = "objectives: [{gfpo: {k: 4}, weight: 0.25}, {name: grpo, weight: 2}, {grpo: {std: none}}]"
    built = recipe(("objective: {name: gfpo, k: 4}", several)).objectives
    assert [(o.name, o.weight) for o in built] == [("gfpo", 0.25), ("grpo_1", 2.0), ("grpo_2", 1.0)]
    batch, logprob = random_batch(0, size=8)
    weighted, plain = loss_of(built[0], batch, logprob), loss_of(gfpo(k=4), batch, logprob)
    for a, b in zip(weighted, plain, strict=True):
        torch.testing.assert_close(a, 0.25 * b)


def test_importance_weights_with_the_trainers_old_logprob(recipe):
    text = objective("{name: grpo, add: [{importance_weight: {high: 3}}]}")
    (built,) = recipe(sampling("old_logprob: trainer"), text).objectives
    assert built.chain[-1].name == "importance_weight"


def test_adapter_sync_with_an_adapter(recipe):
    got = recipe(sampling("sync: adapter"), model("adapter: {}")).recipe
    assert (got.sampling.sync, got.model.adapter.rank) == ("adapter", 16)


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


def test_merge_keys_and_anchors_of_yaml(recipe):
    experiment = recipe(("steps: 2", "&n steps: &two 2"), "eval: {samples: *two}\n")
    assert experiment.recipe.eval.samples == experiment.recipe.run.steps == 2


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


def test_an_infinite_norm_does_not_clip(recipe):
    assert recipe("optim: {max_grad_norm: .inf}\n").recipe.optim.max_grad_norm == float("inf")


@pytest.mark.parametrize("hub, repo, private", [("user/name", "user/name", None), ("{repo: u/n}", "u/n", True)])
def test_hub_takes_a_name_or_a_section(recipe, hub, repo, private):
    got = recipe(f"hub: {hub}\n").recipe.hub
    assert (got if private is None else got.repo) == repo
    assert private is None or got.private is private
    check_repo_name(repo)


def test_rewards_as_mapping_and_as_list_are_the_same(recipe):
    mapping = recipe(rewards("{'user_code:correct': 2}")).recipe.reward_list()
    listed = recipe(rewards("[{fn: 'user_code:correct', weight: 2}]")).recipe.reward_list()
    assert mapping == listed == [Reward(fn="user_code:correct", weight=2.0)]


def sections(hint=Recipe):
    below = [model for field in hint.model_fields.values() for model in models_in(field.annotation)]
    return list(dict.fromkeys([hint, *(inner for model in below for inner in sections(model))]))


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_sections_are_frozen_and_refuse_unknown_keys(section: type[BaseModel]):
    assert section.model_config["frozen"] and section.model_config["extra"] == "forbid"


def test_the_recipes_of_the_checkout_load():
    found = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
    assert found
    for path in found:
        assert load_experiment(path).objectives


def test_loading_a_recipe_needs_no_engine():
    """Bad input stops before a model is loaded: not even the libraries are."""
    heavy = ["transformers", "vllm", "deepspeed", "accelerate", "peft", "trl", "datasets"]
    code = f"import sys, json, align.config; print(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert json.loads(shown.stdout) == []


@pytest.mark.parametrize("path", ["align.registry:LOSSES", "align.objectives.gfpo:gfpo", "pathlib:Path.home"])
def test_load_object(path):
    assert load_object(path) is not None


@pytest.mark.parametrize("path", ["", "x", "x:", ":x", "a/b:c", "x:y z", "http://x:y"])
def test_load_object_refuses_what_is_no_dotted_path(path):
    with pytest.raises(ValueError, match=re.escape(f"{path!r} is not a dotted path; write package.module:name")):
        load_object(path)


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


# ---- overrides of keys that hold dots, places in lists, numbers


def test_overrides_reach_rewards_and_list_items(recipe):
    weight = recipe(overrides=["rewards.rewards.length:length_penalty=0.5"]).rewards[0].weight
    assert weight == 0.5
    added = ("objective: {name: gfpo, k: 4}", "objective: {name: grpo, add: [{kl_policy_ref: {coef: 1}}]}")
    (objective,) = recipe(added, overrides=["objective.add.0.kl_policy_ref.coef=1e-4"]).objectives
    assert objective.losses[1].coef == 1e-4
    with pytest.raises(ConfigError, match="'3' must be a place in the list, below 1"):
        recipe(added, overrides=["objective.add.3.kl_policy_ref.coef=1"])


def test_numbers_without_a_point_are_numbers(recipe):
    args = ("rewards.length:length_penalty: 1.0", "rewards.length:length_penalty: 1e-1")
    assert recipe(args, overrides=["objective.weight=5e-1"]).rewards[0].weight == 0.1


def test_the_resolved_objective_has_every_default():
    assert with_defaults({"gfpo": {"k": 4}, "weight": 2}) == {
        "name": "gfpo",
        "k": 4,
        "metric": "shortest",
        "std": "population",
        "eps": 0.0,
        "clip_low": 0.2,
        "clip_high": 0.2,
        "aggregation": "token-mean",
        "denominator": "full",
        "weight": 2,
    }
    spelled = {"chain": [{"group_advantage": None}], "loss": {"clipped_surrogate": {"clip_high": 0.3}}}
    assert with_defaults(spelled) == {
        "chain": [{"group_advantage": {"std": "population", "eps": 0.0}}],
        "loss": [
            {
                "clipped_surrogate": {
                    "clip_low": 0.2,
                    "clip_high": 0.3,
                    "dual_clip": math.inf,
                    "aggregation": "token-mean",
                    "denominator": "full",
                }
            }
        ],
    }
