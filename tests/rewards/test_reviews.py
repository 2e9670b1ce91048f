import json
from collections import Counter

import pytest

from rewards import reviews

SIZE = 1000


@pytest.fixture(scope="module")
def rows():
    return reviews.pairs(size=SIZE, seed=3)


def whole():
    """{text: snippet} over all parts."""
    return {snippet.text: snippet for part in reviews.PARTS for snippet in reviews.snippets(part)}


# Snippets


def test_labels_are_those_of_the_critics():
    known = whole()
    for text, label, film in [
        ("What an embarrassment.", "rotten", "swept_away"),
        ("Everything is off.", "rotten", "all_about_the_benjamins"),
        ("A film of quiet power.", "fresh", "all_about_lily_chouchou"),
        ("A nifty portrait of a minor, but intriguing, element of popular culture.", "fresh", "scratch"),
    ]:
        assert (known[text].label, known[text].film) == (label, film)


def test_texts_are_clean():
    for text in whole():
        assert text == " ".join(text.split()) and "&amp;" not in text
    assert sum("Lilo & Stitch" in text for text in whole()) > 3


def test_no_film_and_no_text_is_in_two_parts():
    parts = {part: reviews.snippets(part) for part in reviews.PARTS}
    films = [film for found in parts.values() for film in {snippet.film for snippet in found}]
    texts = [snippet.text for found in parts.values() for snippet in found]
    assert len(set(films)) == len(films) > 500
    assert len(set(texts)) == len(texts) > 12_600
    assert len(parts["judge"]) > 3500 and len(parts["pairs"]) > 7000 and len(parts["prompts"]) > 1000


# Pairs


def test_a_pair_is_a_fresh_and_a_rotten_continuation_of_one_prompt(rows):
    known = {}
    for snippet in reviews.snippets("pairs"):
        known[snippet.film, snippet.fresh, snippet.rest(8)] = snippet
    for row in rows:
        fresh, rotten = known[row["film"], True, row["chosen"]], known[row["film"], False, row["rejected"]]
        own = fresh if row["begins"] == "fresh" else rotten
        assert row["prompt"] == own.head(8)
        assert row["prompt"] + own.rest(8) == own.text
    json.dumps(rows)


def test_half_of_the_prompts_begin_fresh_in_any_beginning(rows):
    assert [row["begins"] for row in rows] == ["fresh", "rotten"] * (SIZE // 2)


def test_prompts_are_distinct_and_no_continuation_stands_twice_on_a_film(rows):
    assert len({row["prompt"] for row in rows}) == SIZE
    assert max(Counter((row["film"], row[key]) for row in rows for key in ("chosen", "rejected")).values()) == 1


@pytest.mark.parametrize("words", [1, 4, 12])
def test_the_number_of_words(words):
    for row in reviews.pairs(size=100, words=words):
        assert len(row["prompt"].split()) == words
        for key in ("chosen", "rejected"):
            assert row[key][0] == " " and row[key][1] != " "
            assert reviews.SHORTEST <= len(row[key].split()) <= 53 - words


def test_rows_depend_on_the_seed_alone_and_fewer_are_the_first_of_more(rows):
    again = reviews.pairs(size=20, seed=3)
    assert again == rows[:20]
    again[0]["prompt"] = "changed"  # what is kept in memory is not given away
    assert reviews.pairs(size=20, seed=3) == rows[:20] != reviews.pairs(size=20, seed=4)
    for source in (reviews.prompts, reviews.texts):
        assert source(size=20) == source(size=40)[:20] != source(size=20, seed=1)


# Prompts and texts


@pytest.mark.parametrize("words", [2, 8])
def test_prompts_are_on_films_and_of_texts_that_no_pair_has(words):
    found = reviews.prompts(size=500, words=words)
    assert len({row["prompt"] for row in found}) == 500
    assert [row["begins"] for row in found] == ["fresh", "rotten"] * 250
    for seed in range(3):
        pairs = reviews.pairs(size=1200, words=words, seed=seed)
        assert {row["film"] for row in pairs}.isdisjoint(row["film"] for row in found)
        assert {row["prompt"] for row in pairs}.isdisjoint(row["prompt"] for row in found)


def test_texts_are_whole_snippets_of_the_films_of_the_pairs():
    found = reviews.texts(size=300)
    known = {snippet.text: snippet for snippet in reviews.snippets("pairs")}
    for row in found:
        assert known[row["prompt"] + row["chosen"]].label == row["begins"]
    assert len({row["prompt"] for row in found}) == 300


# Errors


@pytest.mark.parametrize("source", [reviews.pairs, reviews.prompts, reviews.texts])
def test_what_cannot_be_asked_for(source):
    with pytest.raises(ValueError, match="^size must be at least 1, not 0"):
        source(size=0)
    with pytest.raises(ValueError, match="^words must be at least 1, not 0"):
        source(size=1, words=0)
    with pytest.raises(ValueError, match=r"^size: 9999 .* of 8 words asked for, and there are \d+; lower size"):
        source(size=9999)
    with pytest.raises(ValueError, match="^size: 1 .* of 60 words asked for, and there are 0; .*change words"):
        source(size=1, words=60)
