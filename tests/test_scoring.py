"""align.scoring: reward functions are called as TRL calls them, and whatever they do wrong is named with its place."""

import asyncio
import math
import re
import warnings
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.config import RewardFunction
from align.data import Prompt
from align.generator import Response
from align.scoring import RewardError, combine, score

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


def named(fn, name="own", weight=1.0):
    return RewardFunction(name, fn, weight)


def scored(*rewards, prompts=PLAIN):
    return score(rewards, prompts, RESPONSES, TEXTS)


def error_of(*rewards) -> str:
    with pytest.raises(RewardError) as caught:
        scored(*rewards)
    return str(caught.value)


# ---- the call


def test_rewards_get_trls_arguments():
    recorder = Recorder([0.0, 1.0, 2.0, 3.0])
    assert scored(named(recorder)) == {"own": [0.0, 1.0, 2.0, 3.0]}
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
    recorder = Recorder([0.0] * 4)
    scored(named(recorder), prompts=CHAT)
    (arguments,) = recorder.calls
    assert arguments["prompts"][1] == [{"role": "user", "content": "q1"}]
    assert arguments["completions"] == [[{"role": "assistant", "content": text}] for text in TEXTS]


def test_conversations_and_plain_text_may_stand_in_one_batch():
    recorder = Recorder([0.0] * 4)
    scored(named(recorder), prompts=[PLAIN[0], CHAT[1], PLAIN[2], CHAT[3]])
    assert [type(c) for c in recorder.calls[0]["completions"]] == [str, list, str, list]


def test_a_column_that_a_row_lacks_is_none():
    recorder = Recorder([0.0] * 4)
    prompts = [*PLAIN[:3], Prompt([1], "q", "q", {"other": 5})]
    scored(named(recorder), prompts=prompts)
    arguments = recorder.calls[0]
    assert (arguments["level"], arguments["other"]) == ([0, 1, 2, None], [None, None, None, 5])


def test_a_column_may_not_replace_what_was_generated():
    recorder = Recorder([0.0] * 4)
    scored(named(recorder), prompts=[Prompt([1], "q", "q", {"completions": "theirs", "truncated": "no"})] * 4)
    assert recorder.calls[0]["completions"] == TEXTS and recorder.calls[0]["truncated"][3] is True


def test_rewards_as_trl_users_write_them():
    def accuracy_reward(prompts, completions, answer, **kwargs):
        return [1.0 if a in c else None if not c else 0 for c, a in zip(completions, answer, strict=True)]

    def length(completion_ids, *, per_token, **kwargs):
        return [per_token * len(ids) for ids in completion_ids]

    got = scored(named(accuracy_reward, "accuracy"), named(partial(length, per_token=2), "length"))
    assert got == {"accuracy": [0.0, 0.0, 0.0, None], "length": [0.0, 2.0, 4.0, 6.0]}


def test_async_rewards_run_side_by_side_and_results_keep_the_order_of_the_recipe():
    both = [asyncio.Event(), asyncio.Event()]

    async def meet(mine, other, value, prompts):
        both[mine].set()
        await asyncio.wait_for(both[other].wait(), 5)  # times out where one runs after the other
        return [value] * len(prompts)

    first = named(lambda prompts, **_: meet(0, 1, 1, prompts), "first")
    second = named(lambda prompts, **_: meet(1, 0, 2, prompts), "second")
    got = scored(first, named(Recorder([3] * 4), "plain"), second)
    assert got == {"first": [1.0] * 4, "plain": [3.0] * 4, "second": [2.0] * 4}
    assert list(got) == ["first", "plain", "second"]


def test_no_rows_call_nothing():
    recorder = Recorder([])
    assert score([named(recorder)], [], [], []) == {"own": []} and not recorder.calls


@pytest.mark.parametrize(
    "values", [[1, 0, True, 2.5], (1, 0, 1, 2.5), [np.float32(1), np.int64(0), np.float64(1), 2.5]]
)
def test_numbers_of_every_kind(values):
    got = scored(named(Recorder(values)))["own"]
    assert got == [1.0, 0.0, 1.0, 2.5] and all(type(value) is float for value in got)


# ---- the sum


def test_weighted_sum_leaves_out_what_does_not_apply():
    rewards = [named(None, "a", 2.0), named(None, "b", -0.5), named(None, "c", 0.0)]
    values = {"a": [1.0, None, 3.0, None], "b": [4.0, 2.0, None, None], "c": [9.0, None, None, None]}
    assert combine(rewards, values) == [0.0, -1.0, 6.0, None]


def test_a_component_of_weight_0_still_makes_a_row_count():
    assert combine([named(None, "a", 0.0)], {"a": [5.0, None]}) == [0.0, None]


@given(
    st.lists(
        st.tuples(st.floats(-3, 3), st.lists(st.none() | st.floats(-9, 9), min_size=3, max_size=3)),
        min_size=1,
        max_size=4,
    )
)
def test_weighted_sum_is_the_plain_loop(components):
    rewards = [named(None, f"r{i}", weight) for i, (weight, _) in enumerate(components)]
    got = combine(rewards, {f"r{i}": values for i, (_, values) in enumerate(components)})
    for row in range(3):
        parts = [weight * values[row] for weight, values in components if values[row] is not None]
        assert got[row] == (pytest.approx(sum(parts)) if parts else None)


# ---- failures


def test_a_reward_that_raises_names_reward_row_and_exception():
    def picky(completions, **columns):
        return [int(text) for text in completions if text != "seven"]

    message = error_of(named(picky, "picky"))
    assert message.startswith("reward 'picky' raised ValueError: invalid literal for int() with base 10: 'I say 7'")
    assert message.endswith("(on row 2: 'I say 7')")


def test_an_async_reward_that_raises_names_its_row_too():
    async def picky(completions, **columns):
        await asyncio.sleep(0)
        return [{"seven": 7, "7": 7}[text] for text in completions]

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a coroutine that nobody awaited
        message = error_of(named(Recorder([0.0] * 4), "fine"), named(picky, "picky"))
    assert message == "reward 'picky' raised KeyError: 'I say 7' (on row 2: 'I say 7')"


def test_a_reward_that_fails_only_on_the_batch():
    def impatient(prompts, **columns):
        if len(prompts) > 1:
            raise MemoryError("too many")
        return [0.0]

    assert error_of(named(impatient)) == "reward 'own' raised MemoryError: too many (on the batch as a whole)"


def test_a_reward_whose_signature_does_not_fit():
    def greedy(prompts, completions):  # no **columns
        return [0.0] * len(prompts)

    assert re.match(
        r"reward 'own' raised TypeError: .*unexpected keyword argument .* \(on row 0: 'seven'\)",
        error_of(named(greedy)),
    )


def test_the_exception_of_the_reward_is_the_cause():
    def fails(**columns):
        raise ZeroDivisionError("x")

    with pytest.raises(RewardError) as caught:
        scored(named(fails))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_long_response_is_cut_in_the_message():
    def fails(**columns):
        raise ValueError("no")

    with pytest.raises(RewardError) as caught:
        score([named(fails)], PLAIN[:1], RESPONSES[:1], ["y" * 5000])
    assert str(caught.value).count("y") == 200


def test_stopping_the_run_is_no_failure_of_the_reward():
    def interrupted(**columns):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(named(interrupted))


@pytest.mark.parametrize(
    "values, message",
    [
        ([1.0] * 3, "returned 3 values for 4 rows; return a list with one value a row"),
        ([1.0] * 5, "returned 5 values for 4 rows; return a list with one value a row"),
        ([], "returned 0 values for 4 rows"),
        (1.0, "returned a float for 4 rows; return a list with one value a row"),
        (None, "returned a NoneType for 4 rows"),
        ("1234", "returned a str for 4 rows"),
        ({0: 1, 1: 1, 2: 1, 3: 1}, "returned a dict for 4 rows"),
        (torch.tensor(1.0), "returned a float for 4 rows; return a list"),
        ([1.0, math.nan, 1.0, 1.0], "returned nan for row 1; return a finite number or None"),
        ([1.0, 1.0, -math.inf, 1.0], "returned -inf for row 2; return a finite number or None"),
        ([1.0, 1.0, 1.0, "1"], "returned '1' for row 3; return a finite number or None"),
        ([[1.0], 1.0, 1.0, 1.0], "returned [1.0] for row 0; return a finite number or None"),
        ([1.0, 1j, 1.0, 1.0], "returned 1j for row 1; return a finite number or None"),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "async"])
def test_wrong_values_name_reward_and_row(values, message, kind):
    async def later(**columns):
        return values

    reward = named(Recorder(values) if kind == "plain" else later, "odd")
    assert error_of(named(Recorder([0.0] * 4), "fine"), reward).startswith(f"reward 'odd' {message}")


def test_plain_rewards_may_run_an_event_loop_of_their_own():
    """LLM judges do: TRL calls them outside of any loop."""

    async def judge(text):
        return float(len(text))

    def reward(completions, **columns):
        return [asyncio.run(judge(text)) for text in completions]

    async def other(completions, **columns):
        return [0.0] * len(completions)

    assert scored(named(reward, "judge"), named(other, "other"))["judge"] == [5.0, 1.0, 7.0, 0.0]


def test_arguments_of_the_recipe_win_over_columns_of_the_same_name():
    def reward(completions, *, level, **columns):
        return [float(level)] * len(completions)

    assert score([RewardFunction("own", reward, 1.0, {"level": 9})], PLAIN, RESPONSES, TEXTS) == {"own": [9.0] * 4}


def test_only_a_row_that_fails_in_the_same_way_is_blamed():
    def spread(completions, **columns):
        if len(completions) == 1:
            raise ValueError("needs two")
        if "7" in completions:
            raise ValueError("no seven")
        return [0.0] * len(completions)

    assert error_of(named(spread)).endswith("no seven (on the batch as a whole)")


@pytest.mark.parametrize("values", [np.ones(4), torch.ones(4)])
def test_arrays_are_lists(values):
    assert scored(named(lambda **_: values)) == {"own": [1.0] * 4}
