import json
from collections import Counter, defaultdict

import pytest

from align.system.pypi import fetch
from rewards import champ

SIZE = 350


@pytest.fixture(scope="module")
def rows():
    return champ.pairs(size=SIZE, seed=2)


@pytest.fixture(scope="module")
def problems():
    [path] = fetch(champ.PACKAGE, champ.FILE)
    return json.loads(path.read_text(encoding="utf-8"))["problems"]


# Verdicts


@pytest.mark.parametrize(
    "gold, summary, verdict",
    [
        ("239", "There are 239 strings of length 6 where any two adjacent digits differ by at most 1.", True),
        ("2001000", "The expansion of (x+y+z)^1999 will have 2,001,000 terms.", True),
        ("-9", "The smallest value for real numbers a, b, c satisfying a + b + c = 9 is -9.", True),
        ("-9", "The smallest value is \N{MINUS SIGN}9.", True),
        ("1/2", r"The smallest value of the expression is \(\frac{1}{2}\).", True),
        ("1/2", "The smallest value is 0.5, achieved when a = b.", True),
        ("0", r"The minimum value is $\boxed{0}$, which occurs when $a = b = c = 1$.", True),
        ("At least 1 number", "At least one of the three numbers must be divisible by 4.", True),
        ("2 inequalities", "At most, only two of the three inequalities can be true.", True),
        ("3", r"The value is \( 3 \), which is odd.", True),
        ("-3 is the only possible value", r"The value of \( k \) is \( k = -3 \).", True),
        ("100 (i.e., all values)", "There are 100 values of n in {1, 2, ..., 100} that satisfy it.", True),
        ("239", "There are 29 valid strings of length 6 that differ by at most 1.", False),
        ("1/2", "The smallest value is 1/4.", False),
        ("2", "The solution to the problem 3^105 + 4^105 mod 11 is 3.", False),
        ("76", "The only two-digit automorphic number besides 25 is 75.", False),
        # without doubt, or not at all
        ("601", "The last person, after every 2nd is removed until there is 1 person, has the number 601.", None),
        ("1", "It is prime for only one integer n, which is n = 2.", None),
        ("601", "The last one until there is 1 is the one who was originally numbered 601.", None),
        ("8", "The value is 8 or 9.", None),
        ("8", "The value is 8, 9 and 10.", None),
        ("8", "The value is 8^n.", None),
        ("8", "The value is 8 more than n.", None),
        ("8", "The value is 8 if n is odd, else it is 7.", None),
        ("8", "The value is 8.5.", False),
        ("8", "The value is 8/0.", False),
        ("8", "The remainder is n + 8.", None),
        ("8", "", None),
        ("8", "The value cannot be determined.", None),
        ("No", "No, there is 1.", None),
        ("376 and 625", "They are 376 and 625.", None),
        ("n(n-3)/2", "The number is 2.", None),
    ],
)
def test_verdict(gold, summary, verdict):
    assert champ._verdict(gold, "Find 3^105 + 4^105 for a, b, c with 1 and 2.", summary) is verdict


def test_no_answer_that_people_found_faultless_is_called_wrong(problems):
    verdicts = Counter()
    for problem in problems.values():
        for name, marked in problem["fws_annotations"].items():
            summary = problem["conversations"][name]["messages"][-1]["text"]
            verdict = champ._verdict(problem["_answer"], problem["_text"], summary or "")
            verdicts[marked["start_idx"] is None, verdict] += 1
    assert verdicts[True, False] == 0
    assert verdicts[True, True] > 30 and verdicts[False, False] > 60


def test_people_overrule_the_sentence(problems):
    correct = {answer.text: answer.correct for answer in champ.answers()}
    kept = Counter(
        (marked["start_idx"] is None, correct.get(marked["text"].strip()))
        for problem in problems.values()
        for marked in problem["fws_annotations"].values()
    )
    assert not kept[True, False] and not kept[False, True]
    # 96 are without a fault; of the others those that end in the right number are left out
    assert kept[True, True] > 90 and kept[False, False] > 350 and 20 < kept[False, None] < 90


def test_a_known_answer():
    [found] = [
        answer
        for answer in champ.answers()
        if answer.problem == "P_Combinatorics_1" and "there are 29 valid strings of length 6" in answer.text
    ]
    assert (found.correct, found.gold, found.model) == (False, "239", "GPT-3.5")


# Pairs


def test_a_pair_answers_one_recorded_prompt(rows):
    recorded = defaultdict(dict)
    for answer in champ.answers():
        recorded[answer.prompt][answer.text] = answer
    for row in rows:
        [message] = row["prompt"]
        assert message["role"] == "user" and set(message) == {"role", "content"}
        chosen, rejected = (recorded[message["content"]][row[key][0]["content"]] for key in ("chosen", "rejected"))
        assert chosen.correct and not rejected.correct
        assert chosen.problem == rejected.problem == row["problem"]
        assert (chosen.model, rejected.model) == (row["chosen_model"], row["rejected_model"])
        assert chosen.gold == row["answer"]
    json.dumps(rows)


def test_prompts_hold_the_question(rows, problems):
    assert all(problems[row["problem"]]["_text"].strip() in row["prompt"][0]["content"] for row in rows)


def test_no_answer_stands_twice(rows):
    assert len({row[key][0]["content"] for row in rows for key in ("chosen", "rejected")}) == 2 * SIZE
    assert len({row["problem"] for row in rows}) > 90


def test_rows_depend_on_the_seed_alone_and_fewer_are_the_first_of_more(rows):
    assert champ.pairs(size=20, seed=2) == rows[:20] != champ.pairs(size=20, seed=3)


def test_nothing_is_longer_than_asked(rows):
    def longest(rows):
        return max(
            len(text) for row in rows for key in ("prompt", "chosen", "rejected") for text in [row[key][0]["content"]]
        )

    assert longest(rows) <= 2000
    assert longest(champ.pairs(size=50, max_chars=1000)) <= 1000
    assert longest(champ.pairs(size=500, max_chars=10**6)) > 3000


def test_what_cannot_be_asked_for():
    with pytest.raises(ValueError, match="^size must be at least 1, not 0"):
        champ.pairs(size=0)
    with pytest.raises(ValueError, match="^max_chars must be at least 1, not 0"):
        champ.pairs(size=1, max_chars=0)
    with pytest.raises(ValueError, match=r"^size: 9999 pairs asked for, and there are \d+ .* raise max_chars"):
        champ.pairs(size=9999)
