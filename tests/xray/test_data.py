"""The data of the page: what a sample keeps, what is rounded, what is missing."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from align.result.samples import STREAMS
from align.xray.data import LETTERS, TOKENS, Look, about, narrow, page, room, rounded, sample


@pytest.mark.parametrize("tokens, rows", [(90, 10**6), (10**6, 20), (1, 1)])
def test_a_sample_has_whole_groups_of_the_first_and_the_last_step(seen, tokens, rows):
    found = seen("several").batches
    kept = sample(found, tokens, rows)
    sizes = Counter((b.step, r.group) for b in found for r in b.rollouts.values())
    mine = Counter((b.step, r.group) for b in kept for r in b.rollouts.values())
    assert mine and all(sizes[group] == size for group, size in mine.items())
    if tokens > 1:
        assert {b.step for b in kept} == {1, 2}
        assert sum(b.tokens for b in kept) <= tokens and sum(mine.values()) <= rows
    for b in kept:  # what objectives made of it goes along
        for credits in b.credits:
            assert [len(c) for c in credits.credit] == [len(r.response_ids) for r in b.rollouts.values()]


def test_the_page_says_that_it_is_a_sample(seen):
    look = seen("several")
    assert "A sample: " not in "".join(page(look).head["notes"])
    small = page(look, rows=20)
    assert small.head["notes"][0].startswith(f"A sample: {len(small.head['rows'])} of 64 responses")
    assert page(look, rows=20).head == small.head  # the same page for the same run


def test_there_is_room_for_fewer_tokens_where_more_is_known_of_each(seen):
    found = seen("several").batches
    less = [replace(batch, credits=[*batch.credits] * 9) for batch in found]
    assert room(found) == TOKENS > room(less) > TOKENS / 6


def test_four_digits_stay_and_nothing_becomes_zero():
    values = np.array([1.23456789, -1e-7, 3e30, 0.0, np.nan, np.inf, -2.0])
    found = rounded(values)
    np.testing.assert_allclose(found, values.astype(np.float32), rtol=3.1e-5)
    assert found[1] != 0 and np.isnan(found[4]) and found.dtype == np.float32


def test_float32_is_kept_where_it_says_the_same():
    one = np.array([0.1, np.nan, -np.inf], np.float32)
    assert narrow(one.astype(float)).dtype == np.float32
    np.testing.assert_array_equal(narrow(one.astype(float)), one)
    assert narrow(np.array([0.1])).dtype == np.float64 and narrow(np.array([1], np.int8)).dtype == np.int8


def test_a_stream_is_there_where_somebody_has_it_and_unknown_elsewhere(seen):
    made = page(seen("composed"))
    rows = [r for b in seen("composed").batches for r in b.rollouts.values()]
    for name in STREAMS:
        given = [v for r in rows for v in (getattr(r, name) or [None] * len(r.response_ids))]
        assert (name in made.head["streams"]) == any(v is not None for v in given)
        if name in made.head["streams"]:
            np.testing.assert_array_equal(np.isnan(made.columns[f"stream {name}"]), [v is None for v in given])


def test_credit_is_on_the_page_to_the_last_digit(seen):
    look = seen("several")
    made = page(look)
    for number, objective in enumerate(made.head["objectives"]):
        credits = [b.credits[number] for b in look.batches]
        for column, of in (("credit", "credit"), ("weight", "weight"), ("taken", "taken_by")):
            theirs = np.concatenate([row for c in credits for row in getattr(c, of)])
            np.testing.assert_array_equal(made.columns[f"{column} {number}"], theirs)
        assert [piece["name"] for piece in objective["pieces"]] == list(credits[0].pieces)


def test_long_texts_are_cut_and_say_so(seen):
    line = {"step": 0, "prompt": "p" * (LETTERS + 5), "response": "r", "reward": 1.0}
    made = page(Look("x", [], [], [line]))
    assert made.head["greedy"][0]["prompt"].endswith("… (5 more characters)")


def test_pieces_tell_what_the_code_says_of_them():
    assert about("keep_top").startswith("Keep") and "arXiv 2505.16826" in about("ktae") and about("mine") == ""
