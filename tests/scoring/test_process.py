"""What a reward's process makes of its function: values, and what counts as a failure."""

import asyncio
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from support.scored_rows import PLAIN, Recorder, arguments_for, rated

from align.config.recipe import RewardLimits
from align.scoring.process import Failure, is_async, rate_each


def test_rewards_as_trl_users_write_them():
    def accuracy_reward(prompts, completions, answer, **kwargs):
        return [1.0 if a in c else None if not c else 0 for c, a in zip(completions, answer, strict=True)]

    def length(completion_ids, *, per_token, **kwargs):
        return [per_token * len(ids) for ids in completion_ids]

    assert rated(accuracy_reward) == [0.0, 0.0, 0.0, None]
    assert rated(partial(length, per_token=2)) == rated(length, per_token=2) == [0.0, 2.0, 4.0, 6.0]


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


def test_an_exception_is_told_with_its_type():
    def picky(completions, **columns):
        return [int(text) for text in completions]

    why = rated(picky).why
    assert re.fullmatch(r"ValueError: invalid literal for int\(\) with base 10: 'seven' \(test_process.py:\d+\)", why)


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
