"""Which objectives go with which sources, groups, heads and models; and what pairs' data must be."""

import pytest
import yaml

from align.config.experiment import load_experiment
from align.config.recipe_file import ConfigError

ROLLOUTS = {
    "model": {"policy": "some/model", "adapter": {"rank": 4}},
    "data": {"prompts": "prompts.jsonl"},
    "sampling": {"group_size": 4},
    "rewards": {"rewards.gym:correct": 1.0},
    "run": {"out": "runs/x", "steps": 1},
}
PAIRS = {**ROLLOUTS, "data": {"pairs": "pairs.jsonl"}, "rewards": {}}
BOTH = {**ROLLOUTS, "data": {"online": {"prompts": "a.jsonl"}, "offline": {"pairs": "b.jsonl"}}}
ONLINE = [{"best_and_worst": {}}]


@pytest.fixture
def said(tmp_path):
    """The problems of a recipe, and of those the one that must be all."""

    def problems(recipe, **changes):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**recipe, **changes}))
        try:
            load_experiment(path)
        except ConfigError as error:
            return [line.removeprefix(f"{tmp_path}/") for line in error.problems]
        return []

    return problems


@pytest.mark.parametrize(
    "recipe, changes",
    [
        (PAIRS, dict(objective={"name": "dpo"})),
        (PAIRS, dict(objective={"name": "sft"})),
        (PAIRS, dict(objective={"chain": [], "loss": {"pair_logistic": {"beta": 0.5}}})),
        (PAIRS, dict(objective={"name": "sparsepo"})),
        (PAIRS, dict(objective={"name": "mapo"})),
        (PAIRS, dict(objective={"name": "bonbon", "n": 8})),
        (ROLLOUTS, dict(objective={"name": "bonbon", "n": 4, "add": ONLINE})),
        (ROLLOUTS, dict(objective={"name": "ppo"}, sampling={"group_size": 1})),
        (ROLLOUTS, dict(objectives=[{"ppo": {}}, {"grpo": {}}])),
        (BOTH, dict(objectives=[{"grpo": {}, "data": "online"}, {"dpo": {}, "data": "offline", "weight": 0.3}])),
        (ROLLOUTS, dict(objective={"name": "dpo", "add": [{"keep_top": {"k": 3}}, *ONLINE]})),
    ],
)
def test_what_goes_together(said, recipe, changes):
    assert said(recipe, **changes) == []


@pytest.mark.parametrize(
    "recipe, changes, expected",
    [
        (ROLLOUTS, dict(objective={"name": "dpo"}), "objective: dpo learns from pairs; add [{best_and_worst: {}}]"),
        (PAIRS, dict(objective={"name": "tgdpo"}), "model.guide: missing; tgdpo needs a guide"),
        (ROLLOUTS, dict(objective={"name": "rto"}), "model.guide: missing; rto needs a guide"),
        (ROLLOUTS, dict(objective={"name": "grpo"}, rewards={}), "rewards: is empty"),
        (BOTH, dict(objectives=[{"grpo": {}, "data": "online"}]), "data.offline: no objective learns from it"),
        (
            BOTH,
            dict(objective={"name": "grpo", "data": "onlin"}),
            "objective.data: no source is called 'onlin'; did you",
        ),
        (BOTH, dict(objective={"name": "grpo"}), "objective: which source does it learn from? Write data: NAME"),
        (BOTH, dict(objective={"name": "grpo", "data": ["online"]}), "objective.data: must be the name of a source"),
        (
            ROLLOUTS,
            dict(objective={"name": "bonbon", "n": 8, "add": ONLINE}),
            "objective: best_of_n: n = 8, and a group has 4",
        ),
        (
            ROLLOUTS,
            dict(objective={"name": "grpo"}, sampling={"group_size": 1}),
            "sampling.group_size: must be at least 2: group_advantage compares",
        ),
        (
            ROLLOUTS,
            dict(objective={"name": "ppo"}, sampling={"group_size": 1, "dynamic_sampling": {"rounds": 2}}),
            "sampling.group_size: must be at least 2 with dynamic_sampling",
        ),
        (
            ROLLOUTS,
            dict(objective={"chain": [{"token_reward": {}}, {"gae": {}}], "loss": {"clipped_surrogate": {}}}),
            "objective: gae reads value; add the loss value_loss",
        ),
        (
            PAIRS,
            dict(objective={"name": "dpo", "add": [{"mask_l1": {"reward": 0.1, "kl": 0.1}}]}),
            "objective: mask_l1 reads kl_mask; add the loss pair_logistic_masked",
        ),
        (
            ROLLOUTS,
            dict(objectives=[{"ppo": {"value_lr": 0.1}}, {"ppo": {}}]),
            "objectives.1: another objective trains the head 'value' with other settings",
        ),
        (
            PAIRS,
            dict(objective={"name": "dpo", "add": [{"keep_outcome": {"outcome": "correct"}}]}),
            "objective: keep_outcome drops rows, and of a pair of the data both are needed",
        ),
        (
            PAIRS,
            dict(objective={"name": "dpo", "add": [{"mask_truncated": {}}]}),
            "objective: mask_truncated chooses or weighs tokens, and dpo compares whole responses",
        ),
        (
            PAIRS,
            dict(objective={"name": "sft", "add": [{"importance_weight": {}}]}),
            "objective: importance_weight chooses or weighs tokens",
        ),
        (PAIRS, dict(data={"pair": "x"}, objective={"name": "dpo"}), "data.pair: unknown key; did you mean 'pairs'?"),
        (PAIRS, dict(data={"prompts": "x", "pairs": "y"}, objective={"name": "dpo"}), "one of prompts and pairs"),
        (
            BOTH,
            dict(
                data={"a": {"pairs": "x", "holdot": 3}, "b": {"pairs": "y"}},
                objectives=[{"dpo": {}, "data": "a"}, {"ipo": {}, "data": "b"}],
            ),
            "data.a.holdot: unknown key; did you mean 'holdout'?",
        ),
        (PAIRS, dict(model={"policy": {"from": "recipes/none.yaml"}}, objective={"name": "dpo"}), "no such recipe"),
        (PAIRS, dict(model={"policy": {"form": "x"}}, objective={"name": "dpo"}), "model.policy.form: unknown key"),
    ],
)
def test_what_does_not_is_refused_with_its_place(said, recipe, changes, expected):
    problems = said(recipe, **changes)
    assert any(expected in line for line in problems), problems
    assert all(line.startswith("recipe.yaml:") for line in problems)


@pytest.mark.parametrize("adapter", [{"rank": 4}, {}])
def test_a_stage_is_its_recipe_s_adapter_or_model(tmp_path, adapter):
    first = tmp_path / "first.yaml"
    first.write_text(yaml.safe_dump({**PAIRS, "objective": {"name": "dpo"}, "run": {"out": "runs/first", "steps": 1}}))
    text = first.read_text()
    data = yaml.safe_load(text)
    data["model"]["adapter"] = adapter
    first.write_text(yaml.safe_dump(data))
    second = tmp_path / "second.yaml"
    model = {**PAIRS["model"], "guide": {"from": str(first)}}
    second.write_text(yaml.safe_dump({**PAIRS, "model": model, "objective": {"name": "tgdpo"}}))
    experiment = load_experiment(second)
    assert experiment.recipe.model.guide == "runs/first/adapter"
    assert experiment.stage_recipes == {"runs/first/adapter": str(first)}
    model = {**PAIRS["model"], "policy": {"from": str(first)}}
    second.write_text(yaml.safe_dump({**PAIRS, "model": model, "objective": {"name": "dpo"}}))
    with pytest.raises(ConfigError, match="trains an adapter, and a policy is a whole model"):
        load_experiment(second)
