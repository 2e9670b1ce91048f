"""align.scoring and align.calls: reward functions are called as TRL calls them, and what they return adds up."""

import asyncio
import math
import re
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.config.recipe import RewardFunction, RewardLimits
from align.data.prompts import Prompt, Response
from align.scoring.process import Failure, attempt, is_async, rate, rate_each
from align.scoring.score import arguments_of, combine, score_rows

TEXTS = ["seven", "7", "I say 7", ""]
PLAIN = [Prompt([1, 2], f"q{i}", f"q{i}", {"answer": str(i), "level": i}) for i in range(4)]
CHAT = [Prompt([1, 2], "...", [{"role": "user", "content": f"q{i}"}], {"answer": str(i)}) for i in range(4)]
RESPONSES = [Response(list(range(i)), [-1.0] * i, truncated=i == 3) for i in range(4)]


@dataclass
class Recorder:
    """A reward that keeps what it was called with."""

    values: list
    calls: list = field(default_factory=list)

    def __call__(self, **arguments):
        self.calls.append(arguments)
        return self.values


def arguments_for(prompts):
    return arguments_of(prompts, RESPONSES, TEXTS)


def rated(fn, **args):
    """What the function gives to the rows, called in this process."""
    return attempt(partial(rate, fn, arguments_for(PLAIN), args, 4))


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


def test_rewards_as_trl_users_write_them():
    def accuracy_reward(prompts, completions, answer, **kwargs):
        return [1.0 if a in c else None if not c else 0 for c, a in zip(completions, answer, strict=True)]

    def length(completion_ids, *, per_token, **kwargs):
        return [per_token * len(ids) for ids in completion_ids]

    assert rated(accuracy_reward) == [0.0, 0.0, 0.0, None]
    assert rated(partial(length, per_token=2)) == rated(length, per_token=2) == [0.0, 2.0, 4.0, 6.0]


def test_no_rows_call_nothing():
    @dataclass
    class Unasked:
        reward: RewardFunction

    assert score_rows([Unasked(RewardFunction("own", "", 1.0))], [], [], [], 0) == {"own": []}


@pytest.mark.parametrize(
    "values", [[1, 0, True, 2.5], (1, 0, 1, 2.5), [np.float32(1), np.int64(0), np.float64(1), 2.5]]
)
def test_numbers_of_every_kind(values):
    got = rated(Recorder(values))
    assert got == [1.0, 0.0, 1.0, 2.5] and all(type(value) is float for value in got)


@pytest.mark.parametrize("values", [np.ones(4), torch.ones(4)])
def test_arrays_are_lists(values):
    assert rated(Recorder(values)) == [1.0] * 4


def test_plain_rewards_may_run_an_event_loop_of_their_own():
    """LLM judges do: TRL calls them outside of any loop."""

    async def judge(text):
        return float(len(text))

    def reward(completions, **columns):
        return [asyncio.run(judge(text)) for text in completions]

    assert rated(reward) == [5.0, 1.0, 7.0, 0.0]


def test_arguments_of_the_recipe_win_over_columns_of_the_same_name():
    def reward(completions, *, level, **columns):
        return [float(level)] * len(completions)

    assert rated(reward, level=9) == [9.0] * 4


def test_async_functions_and_objects_are_recognised():
    async def reward(**columns):
        return [1.0]

    class Judge:
        async def __call__(self, **columns):
            return [1.0]

    assert is_async(reward) and is_async(partial(reward, x=1)) and is_async(Judge())
    assert not is_async(Recorder([])) and not is_async(len)


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


# ---- failures


def test_an_exception_is_told_with_its_type():
    def picky(completions, **columns):
        return [int(text) for text in completions]

    assert rated(picky) == Failure("ValueError: invalid literal for int() with base 10: 'seven'")


def test_a_signature_that_does_not_fit():
    def greedy(prompts, completions):  # no **columns
        return [0.0] * len(prompts)

    assert re.match(r"TypeError: .*unexpected keyword argument", rated(greedy).why)


WRONG_FORM = [
    ([1.0] * 3, "3 values"),
    ([1.0] * 5, "5 values"),
    ([], "0 values"),
    (1.0, "a float"),
    (None, "a NoneType"),
    ("1234", "a str"),
    ({0: 1, 1: 1, 2: 1, 3: 1}, "a dict"),
    (torch.tensor(1.0), "a float"),
]


@pytest.mark.parametrize("values, got", WRONG_FORM)
def test_other_than_one_value_a_row_fails_the_call(values, got):
    why = f"ValueError: returned {got} for 4 rows; return a list with one value a row"
    assert rated(Recorder(values)) == Failure(why)


WRONG_VALUES = [
    ([1.0, math.nan, 1.0, 1.0], 1, "nan"),
    ([1.0, 1.0, -math.inf, 1.0], 2, "-inf"),
    ([1.0, 1.0, 1.0, "1"], 3, "'1'"),
    ([[1.0], 1.0, 1.0, 1.0], 0, "[1.0]"),
    ([1.0, 1j, 1.0, 1.0], 1, "1j"),
]


@pytest.mark.parametrize("values, row, got", WRONG_VALUES)
def test_a_value_that_is_no_finite_number_fails_its_row(values, row, got):
    wanted = [1.0] * 4
    wanted[row] = Failure(f"returned {got}; return a finite number or None")
    assert rated(Recorder(values)) == wanted


def test_an_async_function_of_several_values_fails_its_rows():
    async def later(**columns):
        return [1.0, 1.0]

    found = asyncio.run(rate_each(later, arguments_for(PLAIN), {}, 4, RewardLimits()))
    assert found == [Failure("ValueError: returned 2 values for 1 rows; return a list with one value a row")] * 4
