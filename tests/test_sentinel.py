"""align.sentinel and align.watch: each way in which a run goes wrong is found and named; healthy runs raise nothing."""

import json
import re
import timeit
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import batch_of

from align.checkpoint import checkpoint
from align.config.experiment import load_experiment
from align.config.recipe import Correct, RewardFunction
from align.config.recipe_file import ConfigError
from align.config.sentinel import Rule, Sentinel, alarms
from align.data.prompts import Prompt, Response
from align.metrics.step import rollout_metrics, variance_shares
from align.objectives.sparsepo import pair_logistic_masked
from align.rollout.rollouts import Rollout
from align.rollout.sources import Collected
from align.run.sentinel import Watch, last_good, unfinite, warnings_of
from align.system import files

HEALTHY = sorted((Path(__file__).parent / "traces").glob("*.json"))  # {metric: value of each step, null for none}
FINE = {
    "reward/mean": 0.5,
    "correct": 0.5,
    "response/length": 20.0,
    "response/truncated": 0.1,
    "response/entropy": 0.8,
    "signal/generated": 100,
    "signal/carrying": 60,
    "signal/taken/keep_top": 25,
    "signal/taken/group_advantage": 15,
    "signal/taken/clipped": 0,
    "loss": 0.1,
    "grad_norm": 0.3,
    "skipped": 0,
    "ratio_max": 1.2,
    "kl_k3_old_policy": 0.01,
    "rewards/right": 0.5,
    "rewards/right/share": 0.8,
    "rewards/polite": 0.5,
    "rewards/polite/share": 0.2,
}
NO_TOKEN = {"signal/carrying": 0, "signal/taken/keep_top": 60, "signal/taken/group_advantage": 40}


def run(*phases: tuple[int, dict]) -> list[dict]:
    """Steps in phases of (number, what differs from a healthy step)."""
    changes = [change for number, change in phases for _ in range(number)]
    return [{"step": i + 1, **FINE, **change} for i, change in enumerate(changes)]


def found(steps, **sections) -> dict[str, str]:
    """{rule: its message} of the newest step."""
    sentinel = Sentinel.model_validate(sections)
    return {alarm.rule: alarm.message for alarm in alarms(sentinel, steps, "right")}


# ---- each pathology


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


# ---- healthy runs


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


# ---- thresholds and actions in YAML


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


RECIPE = """\
model: {policy: some/model}
data: {prompts: prompts.jsonl}
rewards: {"rewards.length:length_penalty": 1.0}
objective: {name: grpo}
run: {steps: 2, out: runs/x}

"""


# ---- acting


def watch(tmp_path, earlier=(), **sections) -> Watch:
    """A watch over a run of which metrics.jsonl says this."""
    recipe = SimpleNamespace(sentinel=Sentinel.model_validate(sections))
    experiment = SimpleNamespace(recipe=recipe, correct=Correct(reward="right"), objectives=())
    log = SimpleNamespace(out=tmp_path, steps=lambda: list(earlier))
    return Watch(SimpleNamespace(experiment=experiment), log)


def judged(own: Watch, steps) -> list[dict]:
    """The steps with their flags, as metrics.jsonl has them; a rollback forgets what was, as the real one does."""
    out = []
    for step in steps:
        verdict = own.judge(step["step"], {key: value for key, value in step.items() if key != "step"})
        out.append({**step, **verdict.flags})
        if verdict.action == "rollback":
            own.rollbacks, own.steps = own.rollbacks + 1, []
    return out


def flagged(rows, flag) -> list[int]:
    return [row["step"] for row in rows if f"sentinel/{flag}" in row]


def test_a_warning_is_said_once_and_again_after_a_while(tmp_path):
    steps = run((12, {}), (50, {"response/truncated": 1.0}))
    assert flagged(judged(watch(tmp_path), steps), "all_truncated") == [17, 38, 59]
    often = judged(watch(tmp_path, remind=10), steps)
    assert flagged(often, "all_truncated") == [17, 28, 39, 50, 61]


def test_a_rule_that_comes_and_goes_is_not_said_each_time(tmp_path):
    steps = run(*[(3, {"ratio_max": 900.0}), (2, {})] * 6)
    assert flagged(judged(watch(tmp_path), steps), "ratio_blow_up") == [3, 28]


def make_checkpoints(tmp_path, *steps):
    for step in steps:
        folder = tmp_path / f"checkpoints/step_{step}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(checkpoint.State(step, [], 1, []).to_json())
        sums = [f"{digest}  {name}\n" for name, digest in files.digests(folder).items()]
        (folder / checkpoint.SUMS).write_text("".join(sums))


ROLLBACK = {"ratio_blow_up": {"for_steps": 3, "action": "rollback"}}


def test_the_last_good_checkpoint_is_from_before_it_began(tmp_path):
    make_checkpoints(tmp_path, 2, 4, 6)
    (tmp_path / "checkpoints/step_5").mkdir()  # not whole
    assert last_good(tmp_path / "checkpoints", 5) == tmp_path / "checkpoints/step_4"
    assert last_good(tmp_path / "checkpoints", 1) is None
    own = watch(tmp_path, **ROLLBACK)
    *_, last = (own.judge(step["step"], step) for step in run((5, {}), (3, {"ratio_max": 900.0})))
    assert (last.action, last.good) == ("rollback", tmp_path / "checkpoints/step_4")


def test_without_a_checkpoint_from_before_and_after_so_many_rollbacks_a_run_stops(tmp_path):
    steps = run((4, {}), (20, {"ratio_max": 900.0}))
    assert flagged(judged(watch(tmp_path, **ROLLBACK), steps), "stop")[:1] == [7]
    make_checkpoints(tmp_path, 2)
    rows = judged(watch(tmp_path, **ROLLBACK, rollbacks=2), steps)
    assert flagged(rows, "rollback") == [7, 10] and flagged(rows, "stop")[:1] == [13]


@pytest.mark.parametrize("sections", [ROLLBACK, {"ratio_blow_up": {"for_steps": 3, "action": "stop"}}, {}])
def test_a_resumed_run_judges_as_the_whole_one(tmp_path, sections):
    """Up to the step after which the run stops, wherever it was cut."""
    make_checkpoints(tmp_path, 2)
    drift = {"response/length": 90.0}
    steps = run((5, {}), (2, {"ratio_max": 900.0}), (9, {"ratio_max": 900.0, **drift}), (9, drift))
    whole = judged(watch(tmp_path, **sections), steps)
    acted = [i for i, row in enumerate(whole) if "sentinel/stop" in row]
    assert len(whole[0]) < len(whole[7]) and any(len(row) > len(FINE) + 1 for row in whole)
    for cut in range(1, (acted or [len(whole)])[0]):
        earlier = [json.loads(json.dumps(row)) for row in whole[:cut]]
        assert judged(watch(tmp_path, earlier, **sections), steps[cut:]) == whole[cut:]


def test_a_run_that_was_stopped_and_resumed_starts_to_look_anew(tmp_path):
    stop = {"no_signal": {"for_steps": 3, "action": "stop"}}
    rows = judged(watch(tmp_path, **stop), run((3, NO_TOKEN)))
    assert flagged(rows, "stop") == [3]
    assert flagged(judged(watch(tmp_path, rows, **stop), run((3, NO_TOKEN))), "stop") == [3]


def test_a_warning_that_became_a_stop_on_resuming_stops(tmp_path):
    warned = judged(watch(tmp_path, no_signal={"for_steps": 3}), run((4, NO_TOKEN)))
    assert flagged(warned, "no_signal") == [3] and flagged(warned, "stop") == []
    resumed = watch(tmp_path, warned, no_signal={"for_steps": 3, "action": "stop"})
    assert resumed.judge(5, NO_TOKEN).action == "stop"


def test_what_a_loss_says_is_a_warning_too():
    losses = (pair_logistic_masked(beta=0.1),)
    objectives = [SimpleNamespace(name=name, losses=losses) for name in ("sparsepo", "dpo")]
    assert warnings_of(objectives[:1], {"mask_dead": 0.5}) == {}
    assert list(warnings_of(objectives[:1], {"mask_dead": 1.0})) == ["pair_logistic_masked"]
    assert list(warnings_of(objectives, {"sparsepo/mask_dead": 1.0})) == ["sparsepo/pair_logistic_masked"]


# ---- what the rules read


def rollout(logprobs, rewards, reward):
    prompt = Prompt([1], "q", "q", {})
    return Rollout(0, 0, prompt, Response([5] * len(logprobs), logprobs, False), "a", rewards, reward, True)


def test_entropy_is_the_mean_over_tokens():
    rows = [rollout([-1.0, -2.0, -3.0], {"a": 1.0}, 1.0), rollout([-6.0], {"a": 1.0}, 1.0)]
    assert rollout_metrics([Collected(None, rows)])["response/entropy"] == 3.0


def test_entropy_of_what_a_distribution_sampled_is_its_entropy():
    p = torch.tensor([0.7, 0.2, 0.1])
    drawn = torch.multinomial(p, 20000, replacement=True, generator=torch.Generator().manual_seed(0))
    rows = [rollout(p.log()[drawn].tolist(), {"a": 1.0}, 1.0)]
    assert rollout_metrics([Collected(None, rows)])["response/entropy"] == pytest.approx(
        float(-(p * p.log()).sum()), abs=0.02
    )


def test_shares_of_the_variance():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5000, generator=generator)
    rewards = [RewardFunction("a", None, 2.0), RewardFunction("b", None, -1.0), RewardFunction("seen", None, 0.0)]
    rows = [
        rollout([-1.0], {"a": x, "b": y, "seen": x}, 2 * x - y) for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    found = variance_shares(rows, rewards)
    assert list(found) == ["rewards/a/share", "rewards/b/share"]  # one of weight 0 takes no part
    assert found["rewards/a/share"] == pytest.approx(0.8, abs=0.02)
    assert sum(found.values()) == pytest.approx(1.0)
    assert variance_shares(rows, rewards[:1]) == {}
    assert variance_shares([rollout([-1.0], {"a": 1.0, "b": None}, 2.0)] * 3, rewards) == {}


def test_a_row_is_judged_inside_its_response():
    mask = batch_of([0, 0], [1, 2]).mask
    value = torch.tensor([[1.0, torch.nan], [torch.inf, 1.0]])
    assert unfinite(value, mask).tolist() == [False, True]
    assert unfinite(torch.tensor([torch.nan, 1.0]), mask).tolist() == [True, False]
