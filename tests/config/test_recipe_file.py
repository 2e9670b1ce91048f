"""A recipe's file and the overrides of the command line."""

import pytest
from support.recipes import BASE, alike, problems_of

from align.config.experiment import load_experiment
from align.config.recipe_file import ConfigError
from align.objectives import gfpo


@pytest.mark.parametrize(
    "text, message",
    [
        (BASE + "optim: {lr: 1\n", "not valid YAML: while parsing a flow mapping"),
        (BASE + "optim:\n\tlr: 1\n", "line 14"),
        (BASE + "x: @y\n", "not valid YAML"),
        ("- model\n", "must be a mapping with keys such as model, data, objective"),
        ("model\n", "must be a mapping"),
        ("", "must be a mapping"),
        (b"\xff\xfe", "not valid YAML"),
    ],
)
def test_not_a_recipe(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (problem,) = problems_of(load_experiment, path)
    assert problem.startswith(f"{path}: ") and message in problem


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
    assert alike(experiment.objectives[0], gfpo(k=6)) and not alike(experiment.objectives[0], gfpo(k=4))


def test_an_override_may_hold_an_equals_sign(recipe):
    assert recipe(overrides=["run.out=runs/a=b"]).recipe.run.out == "runs/a=b"


def test_merge_keys_and_anchors_of_yaml(recipe):
    experiment = recipe(("steps: 2", "&n steps: &two 2"), "eval: {samples: *two}\n")
    assert experiment.recipe.eval.samples == experiment.recipe.run.steps == 2


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
