"""What an evaluation measures: pass@k, its summary, responses whose reward failed."""

from dataclasses import replace

import pytest
from support.rollouts import failing, rollout

from align.data.prompts import Episode, Turn
from align.metrics.evaluation import EPISODES, comparison, drift, names, pass_at, summarise
from align.rollout import rollouts


def test_a_failed_response_is_neither_right_nor_wrong():
    right = rollout(0, 0, 1.0, correct=True)
    assert rollouts.mixed([right, failing(0, 1), failing(1, 0), failing(1, 1)]) == []
    assert len(rollouts.mixed([right, failing(0, 1), rollout(0, 2, 0.0)])) == 3
    found = summarise([right, failing(0, 1), failing(1, 0), failing(1, 1)], [right, failing(1, 0)], [1, 2])
    assert found["eval/pass@1"] == found["eval/greedy_pass@1"] == 1.0 and "eval/pass@2" not in found
    assert found["eval/failed"] == 4


def test_pass_at_k_is_the_share_of_draws_that_hold_a_correct_one():
    from itertools import combinations

    correct = [True, False, False, True, False]
    for k in range(1, 6):
        draws = list(combinations(correct, k))
        assert pass_at(k, correct) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert pass_at(3, [False] * 4) == 0.0 and pass_at(1, [True] * 4) == 1.0


def test_summary_is_over_prompts_and_its_interval_holds_the_mean():
    sampled = [
        rollout(g, i, float(g == 0), length=2 + g, correct=g == 0, truncated=i == 1) for g in (0, 1) for i in (0, 1)
    ]
    greedy = [rollout(0, 0, 1.0, correct=True), rollout(1, 0, None)]
    found = summarise(sampled, greedy, [1, 2])
    assert found["eval/reward"] == 0.5 and found["eval/length"] == 2.5 and found["eval/truncated"] == 0.5
    assert found["eval/pass@1"] == found["eval/pass@2"] == 0.5
    assert found["eval/greedy_reward"] == 1.0 and found["eval/greedy_pass@1"] == 0.5
    assert found["eval/rewards/r"] == 0.5
    episodes = {name for name in names(["r"], [1, 2]) if any(measure in name for measure in EPISODES)}
    assert {*found, *drift([0], [0.1])} == {*names(["r"], [1, 2])} - episodes and len(episodes) == 18
    assert found["eval/reward_low"] <= found["eval/reward"] <= found["eval/reward_high"]
    rows = {row["name"]: row for row in comparison(found, found | {"eval/rewards/r": 0.7})}
    low, high = found["eval/rewards/r_low"], found["eval/rewards/r_high"]
    assert (rows["rewards/r"]["after"], rows["rewards/r"]["before_interval"]) == (0.7, [low, high])  # each by name
    (row,) = [row for row in comparison(found, found | {"eval/reward": 0.6}) if row["name"] == "reward"]
    assert (row["before"], row["after"], row["before_interval"]) == (
        0.5,
        0.6,
        [found["eval/reward_low"], found["eval/reward_high"]],
    )


def test_episodes_of_an_evaluation():
    def episode(rollout, turns, success):
        spans = [Turn("assistant", 0, 1), Turn("user", 1, 3)] * (turns - 1)
        spans = (*spans, Turn("assistant", 0, 1))
        response = replace(rollout.response, turns=spans, episode=Episode("e", "terminated", success=success))
        return replace(rollout, response=response)

    sampled = [episode(rollout(0, i, 1.0), 1 + i, i == 0) for i in range(2)]
    found = summarise(sampled, [episode(rollout(0, 0, 1.0), 3, True)], [1])
    assert found["eval/success"] == 0.5 and found["eval/turns"] == 1.5 and found["eval/greedy_turns"] == 3
    assert {*found} <= {*names(["r"], [1])}
