import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.format import format_match, repetition_penalty


def test_format_match_needs_the_whole_response():
    completions = ["<a>\n1</a>", " <a>1</a>", "", [{"role": "assistant", "content": "<a></a>"}]]
    assert format_match(None, completions, None, pattern="<a>.*</a>", answer=[1] * 4) == [1, 0, 0, 1]


@pytest.mark.parametrize("completions", [[], ["a"]])
def test_bad_pattern_raises_even_without_rows(completions):
    with pytest.raises(ValueError, match="pattern"):
        format_match(None, completions, None, pattern="(a")


def penalty(*ids, **keys):
    return repetition_penalty(None, None, list(ids), truncated=None, **keys)


def test_repetition_penalty_counts_repeated_ngrams():
    assert penalty([1, 2, 3, 4], [5, 5, 5, 5, 5], ngram_size=2) == [0, -0.75]
    assert penalty([1] * 14) == [pytest.approx(-0.9)]
    assert penalty([1] * 14, weight=0.5) == [pytest.approx(-0.45)]


def test_short_responses_have_no_penalty():
    assert penalty([], [1] * 4, [1] * 5) == [0, 0, 0]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 6), st.floats(0, 10))
def test_repetition_penalty_stays_in_range(ids, n, weight):
    (value,) = penalty(ids, ngram_size=n, weight=weight)
    assert -weight <= value <= 0


@pytest.mark.parametrize("keys", [{"ngram_size": 0}, {"weight": -1}])
def test_wrong_keys_raise(keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        penalty([1], **keys)
