"""Rules between keys: which objectives go with which sources, groups, heads, models, engines and hubs."""

import pytest
import yaml
from support.paths import TESTS
from support.recipes import model, objective, problems_of, run, sampling

from align.config.experiment import load_experiment
from align.config.recipe_file import ConfigError
from align.config.rules import REPLAY

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


def test_a_quantised_policy_needs_an_adapter(said):
    whole = {**ROLLOUTS, "model": {"policy": "some/model", "quantize": "4bit"}, "objective": {"name": "grpo"}}
    [problem] = said(whole)
    assert "model.quantize: 4bit needs model.adapter, for quantised weights cannot be trained" in problem
    assert "add adapter: {rank: 16}" in problem
    adapted = {**whole, "model": {**whole["model"], "adapter": {"rank": 4}}}
    assert said(adapted) == []
    [problem] = said({**adapted, "sampling": {**whole.get("sampling", {}), "sync": "merged"}})
    assert "sampling.sync: merged has no 4-bit base" in problem and "write adapter, or leave it out" in problem


CUT = {"group_size": 4, "top_p": 0.9}


@pytest.mark.parametrize(
    "recipe, changes, expected",
    [
        (ROLLOUTS, dict(objective={"name": "grpo"}, sampling=CUT), []),
        (ROLLOUTS, dict(objective={"name": "grpo"}, sampling={**CUT, "top_k": 20, "min_p": 0.05}), []),
        (
            ROLLOUTS,
            dict(
                objective={"name": "gspo", "add": [{"importance_weight": {}}]},
                sampling={**CUT, "old_logprob": "trainer"},
            ),
            [],
        ),
        (
            ROLLOUTS,
            dict(objective={"name": "grpo", "add": [{"kl_policy_ref": {"coef": 0.1}}]}, sampling=CUT),
            ["objective: kl_policy_ref needs log-probabilities of the reference, whose own support is another one; le"],
        ),
        (
            ROLLOUTS,
            dict(objective={"name": "grpo", "add": [{"entropy_bonus": {"coef": 0.1}}]}, sampling={"top_k": 20}),
            ["objective: entropy_bonus needs the entropy of the whole vocabulary; leave out sampling.top_k"],
        ),
        (
            ROLLOUTS,
            dict(objective={"name": "d3s", "rows": 2, "share": 0.5}, sampling={**CUT, "min_p": 0.1}),
            ["objective: top_tokens needs the entropy of the whole vocabulary; leave out sampling.top_p and sampl"],
        ),
        (ROLLOUTS, dict(objective={"name": "ppo"}, sampling=CUT), ["objective: token_reward needs log-probabilities"]),
        (
            ROLLOUTS,
            dict(objective={"name": "grpo"}, sampling=CUT, optim={"updates_per_step": 2}),
            ["optim.updates_per_step: after the first update the support is another one"],
        ),
        (
            PAIRS,
            dict(objective={"name": "simpo"}, sampling=CUT),
            ["sampling.top_p: answers of data.pairs may lie outside of the support"],
        ),
        (PAIRS, dict(objective={"name": "sft"}, sampling={"stop": ["\n"]}), []),
    ],
)
def test_what_needs_the_whole_distribution_is_refused_where_it_is_cut(said, recipe, changes, expected):
    problems = said(recipe, **changes)
    assert len(problems) == len(expected), problems
    assert all(text in line for text, line in zip(expected, problems, strict=True)), problems


AHEAD = {"engine": "server", "servers": ["http://127.0.0.1:8000"], "staleness": 1}

WEIGHT = {"add": [{"importance_weight": {}}]}


@pytest.mark.parametrize(
    "recipe, objective, sampling, expected",
    [
        (ROLLOUTS, {"name": "grpo"}, AHEAD, None),
        (ROLLOUTS, {"name": "grpo"}, {"staleness": 1}, "vllm runs in the trainer's process"),
        (ROLLOUTS, {"name": "grpo"}, {**AHEAD, "staleness": 2}, "staleness"),
        (ROLLOUTS, {"name": "grpo"}, {**AHEAD, "old_logprob": "trainer"}, "grpo has no importance weight"),
        (ROLLOUTS, {"name": "grpo", **WEIGHT}, {**AHEAD, "old_logprob": "trainer"}, None),
        (ROLLOUTS, {"name": "dpo", "add": [{"best_and_worst": {}}]}, AHEAD, None),
        (
            ROLLOUTS,
            {"chain": [], "loss": {"kl_policy_ref": {"coef": 0.1}}},
            AHEAD,
            "add: [{importance_weight: {}}] to it with sampl",
        ),
    ],
)
def test_a_step_sampled_ahead_needs_a_server_and_an_importance_weight(said, recipe, objective, sampling, expected):
    problems = [line for line in said(recipe, objective=objective, sampling=sampling) if "sampling.staleness:" in line]
    assert len(problems) == (expected is not None) and all(expected in line for line in problems), problems


@pytest.mark.parametrize(
    "sampling", [dict(top_p=0), dict(top_p=1.1), dict(top_k=-1), dict(min_p=1), dict(stop="x"), dict(stop=[""])]
)
def test_a_cut_out_of_range(said, sampling):
    assert said(ROLLOUTS, objective={"name": "grpo"}, sampling=sampling)


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
        (
            PAIRS,
            dict(data={"prompts": "x", "pairs": "y"}, objective={"name": "dpo"}),
            "one of prompts, pairs and episodes",
        ),
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
    with pytest.raises(ConfigError, match="a policy is a whole model; .* write model.adapter: {from: .*first.yaml}"):
        load_experiment(second)
    model = {**PAIRS["model"], "adapter": {"from": str(first)}}
    second.write_text(yaml.safe_dump({**PAIRS, "model": model, "objective": {"name": "dpo"}}))
    experiment = load_experiment(second)
    assert experiment.recipe.model.adapter.start == "runs/first/adapter"
    assert experiment.stage_recipes == {"runs/first/adapter": str(first)}
    data["model"].pop("adapter")
    first.write_text(yaml.safe_dump(data))
    with pytest.raises(
        ConfigError, match="model.adapter.from: .* trains a whole model; name it as model.policy: {from"
    ):
        load_experiment(second)


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ("runs/x/adapter", "model.adapter: .*to go on from an adapter write adapter: {from: ...}"),
        ({"start": "runs/x/adapter"}, "model.adapter.start: unknown key; did you mean"),  # the name is `from` alone
        ({"frm": "runs/x/adapter"}, "model.adapter.frm: unknown key; did you mean 'from'"),
        ({"from": "gone.yaml"}, "model.adapter.from: gone.yaml: no such recipe"),
        ({"from": 3}, "model.adapter.from: .*valid string"),
    ],
)
def test_an_adapter_to_go_on_from_is_named_by_from(tmp_path, adapter, expected):
    recipe = tmp_path / "recipe.yaml"
    model = {**PAIRS["model"], "adapter": adapter}
    recipe.write_text(yaml.safe_dump({**PAIRS, "model": model, "objective": {"name": "dpo"}}))
    with pytest.raises(ConfigError, match=expected):
        load_experiment(recipe)


def test_importance_weights_that_would_count_twice(recipe, tmp_path):
    transform = objective("{name: grpo, add: [{importance_weight: {}}]}")
    (problem,) = problems_of(recipe, transform, sampling("old_logprob: sampler"))
    assert problem.startswith(f"{tmp_path}/recipe.yaml:7: sampling.old_logprob: importance_weight needs sampling.old_")
    assert problems_of(recipe, transform) == [problem.replace(":7:", ":5:")]  # the section, where the default rules


def test_a_tracker_that_is_not_installed(recipe, monkeypatch):
    monkeypatch.setattr("align.config.rules.find_spec", lambda name: None)
    (problem,) = problems_of(recipe, run("trackers: [wandb]"))
    assert ":12: run.trackers.0: wandb is not installed; pip install wandb" in problem
    shipped = TESTS.parent / "recipes/grpo_chain_sum.yaml"
    assert load_experiment(shipped, ["run.trackers=[wandb]"], REPLAY)  # its record is looked at all the same


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


def test_importance_weights_with_the_trainers_old_logprob(recipe):
    text = objective("{name: grpo, add: [{importance_weight: {high: 3}}]}")
    (built,) = recipe(sampling("old_logprob: trainer"), text).objectives
    assert built.chain[-1].name == "importance_weight"


def test_adapter_sync_with_an_adapter(recipe):
    got = recipe(sampling("sync: adapter"), model("adapter: {}")).recipe
    assert (got.sampling.sync, got.model.adapter.rank) == ("adapter", 16)


RECIPE = {
    "model": {"policy": "some/model", "adapter": {"rank": 4}},
    "data": {"prompts": "prompts.jsonl", "holdout": 4},
    "rewards": {"rewards.gym:correct": 1.0},
    "objective": {"name": "grpo"},
    "run": {"out": "runs/x", "steps": 1},
    "hub": {"repo": "user/name", "gate": {"at_least": 0.5}},
}

LOCAL = "hub: the adapter's base is the local path"


def problems(tmp_path, **changes) -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    try:
        load_experiment(path)
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, []),
        (dict(model={"policy": "pypi:some-model==1.0", "adapter": {}}), []),
        (dict(model={"policy": "runs/sft/model"}), []),  # all weights are pushed
        (dict(model={"policy": "runs/sft/model", "adapter": {}}), [f"{LOCAL} runs/sft/model"]),
        (dict(model={"policy": str(TESTS), "adapter": {}}), [f"{LOCAL} {TESTS}"]),
        (dict(data={"prompts": "prompts.jsonl"}), ["hub.gate: needs an evaluation; write data.holdout"]),
        (dict(data={"prompts": "prompts.jsonl", "eval_prompts": "more.jsonl"}), []),
    ],
)
def test_found_before_training(tmp_path, changes, expected):
    found = problems(tmp_path, **changes)
    assert len(found) == len(expected)
    assert all(text in line for text, line in zip(expected, found, strict=True)), found
