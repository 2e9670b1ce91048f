"""What a step measures: signal, failed rewards, entropy, shares of the reward's variance."""

from dataclasses import replace

import pytest
import torch
from support.counting_learner import CountingLearner, annotate
from support.rollouts import WORDS, failing, rollout

from align.config.recipe import RewardFunction
from align.credit import assign
from align.data.prompts import Episode, Prompt, Response, Turn
from align.metrics.step import rollout_metrics, signal_metrics, variance_shares
from align.objectives import gfpo, grpo
from align.rollout import tensors
from align.rollout.rollouts import Rollout
from align.rollout.sources import Collected, SourceBatch


def test_signal_adds_up_and_counts_what_clipping_and_missing_rewards_took():
    scored = [rollout(0, i, r, length=i + 1) for i, r in enumerate([1.0, 0.0, 1.0, None])]
    batch = tensors.to_batch([r for r in scored if r.reward is not None], WORDS)
    credited = assign(gfpo(k=2), batch, annotate(CountingLearner(), "sampler"))
    taken = SourceBatch(Collected(batch, [*scored, rollout(1, 0, 1.0, length=5)], scored), [credited])
    found = signal_metrics([taken], {"clipped": 1 / 3})
    assert found == {
        "signal/generated": 15,
        "signal/carrying": 2,
        "signal/taken/dynamic_sampling": 5,
        "signal/taken/unrated": 4,
        "signal/taken/failed": 0,
        "signal/taken/keep_top": 3,
        "signal/taken/group_advantage": 0,
        "signal/taken/clipped": 1,
    }
    assert rollout_metrics([Collected(None, scored)], 0)["response/unrated"] == 1 and rollout_metrics(
        [Collected(None, scored)], 0
    )["reward/mean"] == pytest.approx(2 / 3)


def test_responses_whose_reward_failed_are_counted_apart_and_take_no_part():
    scored = [rollout(0, 0, 1.0, 2, correct=True), rollout(0, 1, None, 3), failing(0, 2, 4), rollout(0, 3, 0.0, 5)]
    found = rollout_metrics([Collected(None, scored)], 0)
    assert (found["response/unrated"], found["response/failed"], found["rewards/r/failed"]) == (1, 1, 1)
    assert found["reward/mean"] == 0.5 and found["rewards/r"] == 0.5 and found["correct"] == pytest.approx(1 / 3)
    batch = tensors.to_batch([r for r in scored if r.reward is not None], WORDS)
    taken = SourceBatch(
        Collected(batch, scored, scored), [assign(grpo(), batch, annotate(CountingLearner(), "sampler"))]
    )
    counts = signal_metrics([taken], {})
    assert (counts["signal/taken/unrated"], counts["signal/taken/failed"]) == (3, 4)
    assert counts["signal/generated"] == 14 and counts["signal/carrying"] == 7


def sampled(logprobs, rewards, reward):
    prompt = Prompt([1], "q", "q", {})
    return Rollout(0, 0, prompt, Response([5] * len(logprobs), logprobs, False), "a", rewards, reward, True)


def test_entropy_is_the_mean_over_tokens():
    rows = [sampled([-1.0, -2.0, -3.0], {"a": 1.0}, 1.0), sampled([-6.0], {"a": 1.0}, 1.0)]
    assert rollout_metrics([Collected(None, rows)], 0)["response/entropy"] == 3.0


def test_entropy_of_what_a_distribution_sampled_is_its_entropy():
    p = torch.tensor([0.7, 0.2, 0.1])
    drawn = torch.multinomial(p, 20000, replacement=True, generator=torch.Generator().manual_seed(0))
    rows = [sampled(p.log()[drawn].tolist(), {"a": 1.0}, 1.0)]
    assert rollout_metrics([Collected(None, rows)], 0)["response/entropy"] == pytest.approx(
        float(-(p * p.log()).sum()), abs=0.02
    )


def test_shares_of_the_variance():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5000, generator=generator)
    rewards = [RewardFunction("a", None, 2.0), RewardFunction("b", None, -1.0), RewardFunction("seen", None, 0.0)]
    rows = [
        sampled([-1.0], {"a": x, "b": y, "seen": x}, 2 * x - y) for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    found = variance_shares(rows, rewards)
    assert list(found) == ["rewards/a/share", "rewards/b/share"]  # one of weight 0 takes no part
    assert found["rewards/a/share"] == pytest.approx(0.8, abs=0.02)
    assert sum(found.values()) == pytest.approx(1.0)
    assert variance_shares(rows, rewards[:1]) == {}
    assert variance_shares([sampled([-1.0], {"a": 1.0, "b": None}, 2.0)] * 3, rewards) == {}


def test_a_sum_that_is_constant_up_to_rounding_has_no_shares():
    """What is left of its variance is noise: shares of it would be of any size."""
    rewards = [RewardFunction("a", None, 1.0), RewardFunction("b", None, 1.0)]
    rows = [sampled([-1.0], {"a": a, "b": b}, a + b) for a, b in ((0.1, 0.2), (0.3, 0.0), (0.2, 0.1))]
    assert len({row.reward for row in rows}) > 1
    assert variance_shares(rows, rewards) == {}


def played(group, index, turns, others, **episode):
    """An episode in which the policy chose 2 tokens a turn, and others put in so many between."""
    spans = [("assistant", 2), *[("user", others), ("assistant", 2)] * (turns - 1)]
    ends = [sum(length for _, length in spans[: i + 1]) for i in range(len(spans))]
    made = [Turn(role, end - length, end) for (role, length), end in zip(spans, ends, strict=True)]
    told = Episode("e", **{"ended": "terminated", **episode})
    response = Response([5] * ends[-1], [-1.0] * ends[-1], False, tuple(made), told)
    return replace(rollout(group, index, 1.0), response=response)


def test_episodes_are_measured_apart_from_those_that_broke_off():
    some = [
        played(0, 0, 1, 0, success=True),
        played(0, 1, 3, 4, success=False, ended="max_turns", calls=3, failed_calls=1),
        replace(played(0, 2, 2, 50, ended="failed", why="reset: x"), failed={"e": "reset: x"}, reward=None),
    ]
    found = rollout_metrics([Collected(None, some)], 0)
    assert {name: value for name, value in found.items() if name.startswith("episode/")} == {
        "episode/turns": 2.0,
        "episode/environment_tokens": 4.0,
        "episode/ended/terminated": 0.5,
        "episode/ended/truncated": 0.0,
        "episode/ended/max_turns": 0.5,
        "episode/ended/budget": 0.0,
        "episode/success": 0.5,
        "episode/calls": 1.5,
        "episode/valid_calls": pytest.approx(2 / 3),
    }
    assert found["response/length"] == pytest.approx((2 + 6 + 4) / 3) and found["response/failed"] == 1
    assert not any(name.startswith("episode/") for name in rollout_metrics([Collected(None, [rollout(0, 0, 1.0)])], 0))
