"""The sentinel's rules: each way in which a run goes wrong is found and named; healthy runs raise nothing."""

import json
import re
import timeit

import pytest
from support.paths import TRACES
from support.steps import FINE, NO_TOKEN, run

from align.config.experiment import load_experiment
from align.config.recipe_file import ConfigError
from align.config.sentinel import Rule, Sentinel, alarms

RECIPE = """\
model: {policy: some/model}
data: {prompts: prompts.jsonl}
rewards: {"rewards.length:length_penalty": 1.0}
objective: {name: grpo}
run: {steps: 2, out: runs/x}

"""
NAN = float("nan")
HEALTHY = sorted(TRACES.glob("*.json"))


def found(steps, **sections) -> dict[str, str]:
    """{rule: its message} of the newest step."""
    sentinel = Sentinel.model_validate(sections)
    return {alarm.rule: alarm.message for alarm in alarms(sentinel, steps, "right")}


@pytest.mark.parametrize(
    "rule, steps, change, says",
    [
        ("all_truncated", 5, {"response/truncated": 0.97}, "97% of the responses .* raise sampling.max_response_tok"),
        ("no_signal", 10, NO_TOKEN, "no token carried gradient in 10 steps, .* of 1000 tokens keep_top took 600, "),
        ("no_signal", 10, NO_TOKEN, "group_advantage took 400; mean reward 0.5. group_advantage: the responses of a"),
        ("no_signal", 10, {"grad_norm": 0.0}, "the gradient was exactly 0, though tokens carry credit"),
        ("entropy_collapse", 5, {"response/entropy": 0.011}, "0.011 nats a token.* add an entropy_bonus"),
        ("length_drift", 5, {"response/length": 81.0}, "from 20.0 to 81.0 tokens"),
        ("length_drift", 5, {"response/length": 4.9}, "from 20.0 to 4.9 tokens"),
        (
            *("reward_takeover", 10),
            {"rewards/polite/share": 0.96, "rewards/right/share": 0.04},
            "rewards/polite makes 96% of the reward's variance, and rewards/right none",
        ),
        (
            *("reward_takeover", 10),
            {"reward/mean": 0.7, "rewards/right": 0.28},
            "the reward rose while rewards/right fell from 0.5 to 0.28",
        ),
        ("ratio_blow_up", 3, {"ratio_max": 101.0}, "ratio_max is 101"),
        ("ratio_blow_up", 3, {"gfpo/ratio_max": 400.0}, "gfpo/ratio_max is 400"),
        ("kl_blow_up", 3, {"kl_k3_old_policy": 1.5}, "kl_k3_old_policy is 1.5 nats"),
        ("kl_blow_up", 3, {"gfpo/kl_k1_policy_ref": 1.5}, "gfpo/kl_k1_policy_ref is 1.5 nats"),
        ("ratio_blow_up", 3, {"ratio_max": NAN}, "ratio_max is nan"),
        ("kl_blow_up", 3, {"kl_k3_old_policy": NAN}, "kl_k3_old_policy is nan nats"),
        ("kl_blow_up", 3, {"kl_k1_policy_ref": -50.0}, "kl_k1_policy_ref is -50 nats"),
        ("kl_blow_up", 3, {"kl_k3_policy_old": 1.5}, "kl_k3_policy_old is 1.5 nats"),
        (
            *("reward_takeover", 10),
            {"rewards/right/share": 0.03, "rewards/polite/share": 0.5, "rewards/short/share": 0.47},
            "rewards/polite and rewards/short together make 97% of the reward's variance, and rewards/right none to"
            " speak of: lower their weights",
        ),
        (
            *("reward_takeover", 10),
            {"rewards/right/share": -0.1, "rewards/polite/share": 0.7, "rewards/short/share": 0.4},
            "rewards/polite and rewards/short together make 110%",
        ),
        (
            *("reward_takeover", 10),
            {"rewards/right/share": 0.2, "rewards/polite/share": 0.96, "rewards/short/share": -0.16},
            "rewards/polite makes 96% .* lower its weight",
        ),
        (
            "non_finite",
            1,
            {"skipped": 1, "loss": float("nan"), "grad_norm": float("inf")},
            "an update was skipped.*last loss nan, gradient norm inf",
        ),
    ],
)
def test_a_pathology_is_found_after_as_many_steps_and_by_its_rule_alone(rule, steps, change, says):
    healthy = 12
    assert found(run((healthy, {}), (steps - 1, change))) == {}
    messages = found(run((healthy, {}), (steps, change)))
    assert list(messages) == [rule]
    assert re.search(says, messages[rule]), messages[rule]
    key = f"sentinel.{rule}: {{for_steps: {steps}"
    assert key in messages[rule]
    assert found(run((healthy, {}), (steps, change), (1, {}))) == {}


@pytest.mark.parametrize("change", [{"rewards/polite/share": 0.99, "correct": 0.92}, {"rewards/right/share": 0.99}])
def test_no_takeover_where_all_is_solved_or_where_the_reward_that_decides_is_the_one(change):
    assert found(run((30, change))) == {}


def test_a_reward_that_does_not_vary_from_the_start_is_a_takeover_too():
    never = {"rewards/polite/share": 1.0, "rewards/right/share": 0.0, "correct": 0.0}
    assert list(found(run((10, never)))) == ["reward_takeover"]


def test_of_several_objectives_the_one_without_signal_is_named():
    signal = {key.removeprefix("signal/"): value for key, value in FINE.items() if key.startswith("signal/")}
    dead = {key.removeprefix("signal/"): value for key, value in NO_TOKEN.items()}
    rest = {key: value for key, value in FINE.items() if not key.startswith("signal/")}
    several = {f"signal/dpo/{key}": value for key, value in signal.items()}
    several |= {f"signal/gfpo/{key}": value for key, value in {**signal, **dead}.items()}
    steps = [{"step": i, **rest, **several} for i in range(10)]
    assert "for the objective gfpo" in found(steps)["no_signal"]


def test_a_step_without_any_update_has_no_gradient():
    steps = [{key: value for key, value in step.items() if key != "grad_norm"} for step in run((10, {}))]
    assert "no_signal" in found(steps)


def test_steps_that_were_skipped_are_not_without_signal():
    assert list(found(run((12, {"skipped": 1, "grad_norm": float("inf")})))) == ["non_finite"]


def test_only_so_many_batches_are_written_down():
    skipped = {"skipped": 1, "grad_norm": float("inf")}
    rule = {"non_finite": {"dumps": 2}}
    assert "dumps/step_3.jsonl" in found(run((1, {}), (2, skipped)), **rule)["non_finite"]
    assert "dumps" not in found(run((1, {}), (3, skipped)), **rule)["non_finite"].partition("[")[0]


def test_runs_on_pairs_have_neither_length_nor_rewards():
    pairs = [{"step": i, "signal/generated": 9, "signal/carrying": 9, "loss": 0.6, "grad_norm": 1.0, "skipped": 0,
              "accuracy": 0.5} for i in range(30)]  # fmt: skip
    assert found(pairs) == {}


@pytest.mark.parametrize("trace", HEALTHY, ids=lambda path: path.stem)
def test_a_recorded_healthy_run_raises_nothing(trace):
    columns = json.loads(trace.read_text())
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    rows = [{name: value for name, value in row.items() if value is not None} for row in rows]
    assert len(rows) >= 20
    said = {row["step"]: alarms(Sentinel(), rows[: i + 1], "correct") for i, row in enumerate(rows)}
    assert {step: found for step, found in said.items() if found} == {}


def test_a_thousand_steps_cost_less_than_a_second():
    steps = run((2000, {}))
    seconds = timeit.timeit(lambda: alarms(Sentinel(), steps, "right"), number=1000)
    assert seconds < 1


def test_thresholds_and_actions():
    steps = run((12, {}), (2, {"ratio_max": 20.0}))
    assert found(steps) == {}
    assert list(found(steps, ratio_blow_up={"for_steps": 2, "above": 10})) == ["ratio_blow_up"]
    assert found(steps, ratio_blow_up={"for_steps": 2, "above": 10, "action": "ignore"}) == {}
    assert all(isinstance(rule, Rule) and rule.action == "warn" for rule in Sentinel().rules.values())


def test_mistakes_are_explained(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + "sentinel:\n  no_signl: {}\n  length_drift: {factor: 0.5}\n  no_signal: {action: halt}\n")
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    text = str(caught.value)
    assert "recipe.yaml:8: sentinel.no_signl: unknown key; did you mean 'no_signal'?" in text
    assert "recipe.yaml:9: sentinel.length_drift.factor: Input should be greater than 1" in text
    assert "recipe.yaml:10: sentinel.no_signal.action: Input should be 'ignore', 'warn', 'stop' or 'rollback'" in text


def test_rolling_back_needs_checkpoints(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + "sentinel: {no_signal: {action: rollback}}\n")
    with pytest.raises(ConfigError, match=r"yaml:7: sentinel.no_signal.action: rollback needs .*run.save_every"):
        load_experiment(path)
    assert load_experiment(path, ["run.save_every=5"]).recipe.sentinel.no_signal.action == "rollback"


def test_rewards_that_take_over_by_turns_do_so_together():
    turns = [
        {"rewards/polite/share": a, "rewards/short/share": 1 - a, "rewards/right/share": 0.0} for a in (0.99, 0.01)
    ]
    steps = [{"step": i, **FINE, **turns[i % 2]} for i in range(10)]
    assert list(found(steps)) == ["reward_takeover"]
    shared = {"rewards/polite/share": 0.6, "rewards/short/share": 0.3, "rewards/right/share": 0.1}
    assert found(run((10, shared))) == {}


def test_numbers_that_are_not_there_raise_no_other_alarm():
    """NaN is no collapse; a step of NaN among healthy ones is no run of them."""
    assert found(run((12, {"response/entropy": NAN}))) == {}
    assert (
        found(run((12, {}), (2, {"ratio_max": NAN, "kl_k1_policy_ref": -50.0}), (1, {"kl_k1_policy_ref": 0.1}))) == {}
    )
    steps = run((12, {}), (1, {"ratio_max": NAN}), (1, {"ratio_max": 900.0}), (1, {"ratio_max": NAN}))
    assert list(found(steps)) == ["ratio_blow_up"]
