"""The prompts of a run: their fingerprint and their order."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from support.rows import TOKENIZER, numbered, read

from align.config.data_keys import Data
from align.data.prompts import Prompt, Prompts, fingerprint
from align.data.read import load_prompts


def test_a_fingerprint_is_of_what_is_used(file):
    """Tokens of prompts and answers, the columns, and their order."""
    rows = numbered(6)
    prints = {
        "one": fingerprint(read(file(rows)).train),
        "column": fingerprint(read(file([{**rows[0], "answer": 9}, *rows[1:]])).train),
        "prompt": fingerprint(read(file([{**rows[0], "prompt": "?"}, *rows[1:]])).train),
        "order": fingerprint(read(file(rows[::-1])).train),
        "fewer": fingerprint(read(file(rows[1:])).train),
    }
    assert len(set(prints.values())) == len(prints)
    assert fingerprint(read(file(rows, "elsewhere.jsonl")).train) == prints["one"]
    pairs = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    other = [{"prompt": "q", "chosen": "a", "rejected": "c"}]
    said = [fingerprint(load_prompts(Data(pairs=file(p)), TOKENIZER, 0).train) for p in (pairs, other, pairs)]
    assert said[0] == said[2] != said[1]


def some_prompts(size):
    return Prompts([Prompt([i], str(i), str(i), {}) for i in range(size)], [])


@given(size=st.integers(1, 12), count=st.integers(1, 7), seed=st.integers(0, 5), rng=st.randoms(use_true_random=False))
def test_prompts_are_a_function_of_the_step_and_each_epoch_covers_all_once(size, count, seed, rng):
    prompts = some_prompts(size)
    steps = -(-3 * size // count)
    in_order = [prompts.step(step, count, seed) for step in range(steps)]
    assert all(len(taken) == count for taken in in_order)
    for step in rng.sample(range(steps), steps):  # in any order, and in a fresh process' state
        assert some_prompts(size).step(step, count, seed) == in_order[step]
    stream = [prompt.text for taken in in_order for prompt in taken]
    for epoch in range(3):
        assert Counter(stream[epoch * size : (epoch + 1) * size]) == Counter(map(str, range(size)))


def test_epochs_and_seeds_have_orders_of_their_own():
    prompts = some_prompts(30)
    orders = [prompts.step(step, 30, seed) for step in range(3) for seed in range(3)]
    assert len({tuple(prompt.text for prompt in order) for order in orders}) == 9


def test_the_order_leaves_the_global_random_state_alone():
    random.seed(1)
    expected = random.random()
    random.seed(1)
    some_prompts(5).step(0, 3, 0)
    assert random.random() == expected
