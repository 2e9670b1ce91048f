"""Objectives as YAML spells them."""

import math

import pytest
import torch
from support.batches import loss_of, random_batch
from support.recipes import alike, objective, problems_of

from align.config.compose import with_defaults
from align.losses.loss import Constant
from align.objectives import gfpo, grpo


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
    assert alike(built, gfpo(k=4, eps=0.5, clip_high=0.28))
    assert not alike(built, gfpo(k=4, eps=0.5)) and not alike(built, gfpo(k=4, clip_high=0.28))


def test_a_spelled_out_objective_is_named_after_its_transforms(recipe):
    (built,) = recipe(objective(FORMS[2])).objectives
    assert built.name == "keep_top+group_advantage"


def test_aggregation_with_a_number(recipe):
    (built,) = recipe(objective("{name: grpo, aggregation: {constant: 3}}")).objectives
    assert alike(built, grpo(aggregation=Constant(constant=3)))


def test_add_appends_transforms_and_losses(recipe):
    text = "{name: gfpo, k: 4, add: [{entropy_bonus: {coef: 0.1}}, {keep_top: {k: 3}}, {kl_policy_ref: {coef: 1}}]}"
    (built,) = recipe(objective(text)).objectives
    assert [transform.name for transform in built.chain] == ["keep_top", "keep_top", "group_advantage"]  # at its stage
    assert [loss.name for loss in built.losses] == ["clipped_surrogate", "entropy_bonus", "kl_policy_ref"]
    assert [loss.coef for loss in built.losses] == [1.0, 0.1, 1.0]


def test_own_transforms_and_objectives_by_dotted_path(recipe):
    text = "{name: 'user_code:own_objective', eps: 0.5, add: [{'user_code:own_transform': {strength: 2}}]}"
    (built,) = recipe(objective(text)).objectives
    assert built.name == "own" and [transform.name for transform in built.chain] == ["group_advantage", "own_transform"]
    assert alike(built, grpo(eps=0.5))


def test_objectives_with_weights(recipe):
    several = "objectives: [{gfpo: {k: 4}, weight: 0.25}, {name: grpo, weight: 2}, {grpo: {std: none}}]"
    built = recipe(("objective: {name: gfpo, k: 4}", several)).objectives
    assert [(o.name, o.weight) for o in built] == [("gfpo", 0.25), ("grpo_1", 2.0), ("grpo_2", 1.0)]
    batch, logprob = random_batch(0, size=8)
    weighted, plain = loss_of(built[0], batch, logprob), loss_of(gfpo(k=4), batch, logprob)
    for a, b in zip(weighted, plain, strict=True):
        torch.testing.assert_close(a, 0.25 * b)


def test_the_resolved_objective_has_every_default():
    assert with_defaults({"gfpo": {"k": 4}, "weight": 2}) == {
        "name": "gfpo",
        "k": 4,
        "metric": "shortest",
        "std": "population",
        "eps": 0.0,
        "clip_low": 0.2,
        "clip_high": 0.2,
        "dual_clip": math.inf,
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


def test_a_dotted_path_is_looked_at_before_it_is_called(recipe, tmp_path):
    """A recipe could run any function of any module with arguments of its own."""
    ran, made = tmp_path / "ran", "loss: {clipped_surrogate: {}}"
    for spec, what in (
        (f"{{name: 'subprocess:getoutput', cmd: 'touch {ran}'}}", "does not say what it returns; write `-> Objective`"),
        (f"{{name: 'os:mkdir', path: '{ran}'}}", "is not a function"),
        (f"{{'pathlib:Path': {{path: '{ran}'}}}}", "is not a function"),
        (
            f"{{chain: [{{'os:makedirs': {{name: '{ran}'}}}}], {made}}}",
            "write `-> Transform`",
        ),
        (f"{{name: grpo, add: [{{'os:makedirs': {{name: '{ran}'}}}}]}}", "write `-> Transform`"),
        (
            "{name: 'user_code:own_transform'}",
            "returns Transform, as it says, which cannot stand here; name one of Obj",
        ),
        ("{name: 'user_code:lies'}", "user_code:lies returned a int, which cannot stand here"),
        ("{name: 'user_code:misspelt'}", "has annotations that cannot be read: NameError"),
        ("{name: 'user_code:breaks'}", "calling it raised KeyError: 'inside'"),
    ):
        (problem,) = problems_of(recipe, objective(spec))
        assert what in problem
    assert not ran.exists()
