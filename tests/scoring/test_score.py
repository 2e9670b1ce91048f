"""Reward functions are called as TRL calls them, and what they return adds up."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.scored_rows import CHAT, PLAIN, TEXTS, Recorder, arguments_for, rated

from align.config.recipe import RewardFunction
from align.data.prompts import Prompt
from align.scoring.process import Failure
from align.scoring.score import combine, fit, score_rows

# ---- the call


def test_rewards_get_trls_arguments():
    recorder = Recorder([0.0, 1.0, 2.0, 3.0])
    assert rated(recorder) == [0.0, 1.0, 2.0, 3.0]
    (arguments,) = recorder.calls
    assert arguments == {
        "prompts": ["q0", "q1", "q2", "q3"],
        "completions": TEXTS,
        "completion_ids": [[], [0], [0, 1], [0, 1, 2]],
        "truncated": [False, False, False, True],
        "answer": ["0", "1", "2", "3"],
        "level": [0, 1, 2, 3],
    }


def test_conversational_prompts_get_messages():
    arguments = arguments_for(CHAT)
    assert arguments["prompts"][1] == [{"role": "user", "content": "q1"}]
    assert arguments["completions"] == [[{"role": "assistant", "content": text}] for text in TEXTS]


def test_conversations_and_plain_text_may_stand_in_one_batch():
    arguments = arguments_for([PLAIN[0], CHAT[1], PLAIN[2], CHAT[3]])
    assert [type(c) for c in arguments["completions"]] == [str, list, str, list]


def test_a_column_that_a_row_lacks_is_none():
    arguments = arguments_for([*PLAIN[:3], Prompt([1], "q", "q", {"other": 5})])
    assert (arguments["level"], arguments["other"]) == ([0, 1, 2, None], [None, None, None, 5])


def test_a_column_may_not_replace_what_was_generated():
    arguments = arguments_for([Prompt([1], "q", "q", {"completions": "theirs", "truncated": "no"})] * 4)
    assert arguments["completions"] == TEXTS and arguments["truncated"][3] is True


def test_no_rows_call_nothing():
    @dataclass
    class Unasked:
        reward: RewardFunction

    assert score_rows([Unasked(RewardFunction("own", "", 1.0))], [], [], [], 0) == {"own": []}


# ---- the sum


def test_weighted_sum_leaves_out_what_does_not_apply():
    rewards = [RewardFunction(name, "", weight) for name, weight in {"a": 2.0, "b": -0.5, "c": 0.0}.items()]
    values = {"a": [1.0, None, 3.0, None], "b": [4.0, 2.0, None, None], "c": [9.0, None, None, None]}
    assert combine(rewards, values) == [0.0, -1.0, 6.0, None]


def test_a_component_of_weight_0_still_makes_a_row_count():
    assert combine([RewardFunction("a", "", 0.0)], {"a": [5.0, None]}) == [0.0, None]


@given(
    st.lists(
        st.tuples(st.floats(-3, 3), st.lists(st.none() | st.floats(-9, 9), min_size=3, max_size=3)),
        min_size=1,
        max_size=4,
    )
)
def test_weighted_sum_is_the_plain_loop(components):
    rewards = [RewardFunction(f"r{i}", "", weight) for i, (weight, _) in enumerate(components)]
    got = combine(rewards, {f"r{i}": values for i, (_, values) in enumerate(components)})
    for row in range(3):
        parts = [weight * values[row] for weight, values in components if values[row] is not None]
        assert got[row] == (pytest.approx(sum(parts)) if parts else None)


def test_a_row_with_a_failed_component_has_no_reward():
    rewards = [RewardFunction(name, "", 1.0) for name in "ab"]
    values = {"a": [1.0, 1.0, None, None], "b": [2.0, Failure("x"), Failure("x"), None]}
    assert combine(rewards, values) == [3.0, None, None, None]


@pytest.mark.parametrize(
    "weights, values, name",
    [
        ((10.0, 1.0), (3e38, 1.0), "a"),
        ((1.0, -1e300), (1.0, 1e300), "b"),
        ((1e200, 1e200), (1e38, -1e38), None),  # they cancel
        ((1e300, -1e300), (1e38, 1e38), "a"),  # inf - inf
        ((1.0, 1.0), (1.7e38, 1.7e38), None),
        ((1.0, 1.0), (3e38, None), None),
    ],
)
def test_a_sum_beyond_float32_fails_the_reward_that_moves_it(weights, values, name):
    rewards = [RewardFunction(name, "", weight) for name, weight in zip("ab", weights, strict=True)]
    found = fit(rewards, {"a": [values[0], 0.0], "b": [values[1], None]})
    assert [key for key, column in found.items() if isinstance(column[0], Failure)] == ([name] if name else [])
    total, other = combine(rewards, found)
    assert (total is None) == (name is not None)
    assert name or torch.tensor(total, dtype=torch.float32).isfinite()
    assert name != "a" or "beyond float32; lower the weight" in found["a"][0].why
    assert isinstance(other, float)
