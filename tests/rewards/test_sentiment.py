import random
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from rewards import reviews, sentiment
from rewards.sentiment import classifier, vader

JUDGES = {vader: (-1.0, 1.0, 0.0), classifier: (0.0, 1.0, 0.5)}  # lowest, highest, neutral
both = pytest.mark.parametrize("judge", JUDGES)


def judged(judge, *responses):
    return judge([None] * len(responses), list(responses), [[]] * len(responses), film=[""] * len(responses))


def auc(values, labels):
    """Probability that a true row's value is above a false row's."""
    values, labels = np.array(values), np.array(labels)
    true = labels.sum()
    return (rankdata(values)[labels].sum() - true * (true + 1) / 2) / (true * (~labels).sum())


def sample(count):
    """Snippets on films that the classifier has not seen."""
    return random.Random(0).sample(reviews.snippets("prompts"), count)


# What they say


@both
def test_praise_is_above_blame(judge):
    praise, blame = judged(judge, " a delightful, moving triumph.", " a dull, lifeless mess.")
    neutral = JUDGES[judge][2]
    assert blame < neutral - 0.2 and praise > neutral + 0.2


def test_the_classifier_tells_unseen_verdicts_apart():
    found = sample(100)
    assert auc(judged(classifier, *[s.text for s in found]), [s.fresh for s in found]) > 0.78
    found = [s for s in found if len(s.text.split()) >= 12]
    assert auc(judged(classifier, *[s.rest(8) for s in found]), [s.fresh for s in found]) > 0.68


def test_the_lexicon_tells_them_apart_less_well():
    found = reviews.snippets("prompts")
    assert 0.64 < auc(judged(vader, *[s.text for s in found]), [s.fresh for s in found]) < 0.75


def test_the_classifier_was_fitted_on_none_of_the_films_of_pairs_and_prompts():
    texts, fresh = sentiment._training()
    own = {s.text: s for s in reviews.snippets("judge")}
    for part in ("pairs", "prompts"):
        found = reviews.snippets(part)
        assert {s.text for s in found}.isdisjoint(texts)
        assert {s.film for s in found}.isdisjoint(s.film for s in own.values())
    assert len(texts) == len(fresh) > 6000
    assert all(own[text].fresh == label for text, label in zip(texts, fresh, strict=True) if text in own)


def test_the_fit_is_that_of_equal_classes():
    rng = np.random.default_rng(0)
    labels = np.arange(400) < 300
    weight, bias = sentiment._fit(np.where(labels, 1.0, -1.0)[:, None] + 0.8 * rng.normal(size=(400, 1)), labels)
    assert weight[0] > 1 and abs(bias) < 0.3  # three of four are true, and 0 is still the border


# How they read


@both
def test_only_the_response_is_read(judge):
    alone = judged(judge, " a dull, lifeless mess.")
    assert judge(["A wonderful, superb film with"], [" a dull, lifeless mess."], [[1, 2]]) == alone
    chat = [{"role": "user", "content": "superb!"}, {"role": "assistant", "content": " a dull, lifeless mess."}]
    assert judged(judge, chat) == alone


@both
def test_a_response_without_words_is_neutral(judge):
    assert judged(judge, "", " \n\t", []) == [JUDGES[judge][2]] * 3


@both
def test_no_rows(judge):
    assert judged(judge) == []


@both
def test_characters_beyond_the_limit_are_not_read(judge):
    long = ("so so " * sentiment.MAX_CHARS)[: sentiment.MAX_CHARS]
    assert judged(judge, long) == judged(judge, long + " brilliant, wonderful")


def test_equal_responses_get_equal_values_in_any_company():
    texts = [snippet.text for snippet in sample(20)]
    values = judged(classifier, *texts, texts[5], "short", texts[5])
    assert values[5] == values[20] == values[22]
    assert judged(classifier, *texts) == pytest.approx(values[:20], abs=1e-5)


def test_the_trainers_random_numbers_stay():
    sentiment._encoder.cache_clear()
    state = torch.get_rng_state()
    judged(classifier, "fine")
    assert torch.equal(torch.get_rng_state(), state)


# Hostile responses

HOSTILE = [
    "good " * 50_000,
    "not good but " * 50_000,
    "\N{GRINNING FACE}" * 50_000,
    "a" * 100_000,
    "[PAD] [CLS] [SEP] [MASK]",
    "\0\x1b[2J\r",
    "\ud800",
    "\ud83d good \ude00",
    '__import__("os").abort()',
    "{0.__class__} %s $(id) `id`",
    "\N{ZERO WIDTH JOINER}" * 500,
    "ﷺ" * 5000,
]


@both
@pytest.mark.parametrize("response", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_responses_are_scored_in_time_and_range(judge, response):
    judged(judge, "warm")
    start = time.monotonic()
    (value,) = judged(judge, response)
    low, high, _ = JUDGES[judge]
    assert type(value) is float and low <= value <= high
    assert time.monotonic() - start < 5


@both
@settings(max_examples=20)
@given(response=st.text(st.characters(), max_size=60) | st.text(alphabet="notgdbu !?'\U0001f600:)", max_size=60))
def test_any_text_is_in_range(judge, response):
    low, high, _ = JUDGES[judge]
    assert low <= judged(judge, response)[0] <= high
