"""Preference pairs of mathematics: recorded answers of models to 270 competition problems, right and wrong.

From the PyPI package champ-dataset 1.0.0 (CHAMP, arXiv 2401.06961): four models answered each problem under prompts
that give no help, concepts, hints or part of a solution, and then summed their answer up in one sentence. People
marked the first wrong step of 540 of the answers. The package has no verdict on the others; `_verdict` reads one off
the sentence where there is no doubt.
"""

import json
import random
import re
from collections import defaultdict
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from align.system.pypi import fetch

PACKAGE = "champ-dataset==1.0.0"
FILE = "dataset_files/v0.json"

_NUMBER = r"-?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?(?:/[0-9]+)?"

# Gold answers that are one number, with a unit or a remark: "76", "2 inequalities", "100 (i.e., all values)". Yes and
# No are left out, since half of them are right by luck.
_GOLD = re.compile(rf"(?:At (?:least|most) )?({_NUMBER})(?: [a-z -]+)?(?: \(.*\))?")

# A number that the sentence states as a value: "is 2", "are at most 2", "At least 2 of", "is k = 2".
_STATED = re.compile(
    r"(?:\b(?:is|are|be|equals|has|have)(?: (?:at least|at most|exactly|only|always|equal to|still|just|a total of))*"
    rf"|(?:^|, )at (?:least|most)(?:,? only)?|\b(?:only|exactly))\s+(?:[a-z](?:_\w+)? ?= ?)?({_NUMBER})"
    # and that is not the beginning of something else, such as "2^n", "2 or 3", "2 more than" or "2 if"
    r"(?=\.?$|[.;:)](?:\s|$)"
    r"|,?\s+(?!(?:and|or|if|more|less|times|plus|minus|greater|smaller|mod|modulo|to|percent|n)\b)[a-z]{2})",
    re.IGNORECASE,
)

_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_WORD = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b", re.IGNORECASE)
_FRACTION = re.compile(r"\\[dt]?frac\{(-?[0-9]+)\}\{([0-9]+)\}")
_BOX = re.compile(r"\\boxed\{([^{}]*)\}")
_MARKUP = re.compile(r"\\[(),\[\]]|\$")


class Answer(NamedTuple):
    """What one model answered to one prompt."""

    problem: str
    gold: str
    prompt: str
    model: str
    text: str
    correct: bool


def pairs(*, size: int, seed: int = 0, max_chars: int = 2000) -> list[dict]:
    """Return `size` rows with `prompt`, `chosen`, `rejected`, `problem`, `answer`, `chosen_model`, `rejected_model`.

    The prompt is one user message, word for word what both models were asked; `chosen` and `rejected` are their
    answers as text, of at most `max_chars` characters as the message is too, so every row is as it was recorded.
    A chosen answer ends in the right number, or people found no fault in it; a rejected one ends in a wrong number, or
    people found a fault and it does not end in the right one. Of the answers that end right and that people read, half
    have a wrong step: "correct" is the outcome. The better models are chosen more often, so style is a clue.

    No answer stands in two rows; problems do, since each was asked in several ways: split by `problem`, not by row.
    `answer` is the gold answer as the package writes it. The rows are the same for the same arguments; a smaller size
    gives the first of them. Raises ValueError for a size or `max_chars` below 1, and for a size above what there is
    (393 at the default `max_chars`, 548 in all).
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    if max_chars < 1:
        raise ValueError(f"max_chars must be at least 1, not {max_chars}")
    rng = random.Random(seed)
    prompts = defaultdict(lambda: ([], []))
    for answer in answers():
        if max(len(answer.prompt), len(answer.text)) <= max_chars:
            prompts[answer.prompt][0 if answer.correct else 1].append(answer)
    rows = []
    for right, wrong in prompts.values():
        rng.shuffle(right)
        rng.shuffle(wrong)
        rows += [_row(chosen, rejected) for chosen, rejected in zip(right, wrong, strict=False)]
    rng.shuffle(rows)
    if len(rows) < size:
        raise ValueError(
            f"size: {size} pairs asked for, and there are {len(rows)} of at most {max_chars} characters;"
            " lower size or raise max_chars"
        )
    return rows[:size]


@lru_cache(maxsize=1)
def answers() -> tuple[Answer, ...]:
    """Return the answers with a verdict to prompts of a single message, each text once, in the order of the file.

    An answer that was cut off for its length is left out, and so is a text that stands under both verdicts.
    """
    [path] = fetch(PACKAGE, FILE)
    with path.open(encoding="utf-8") as file:
        problems = json.load(file)["problems"].values()
    found = defaultdict(list)
    for problem in problems:
        # By text: the same answer may be recorded twice and marked once.
        marks = {mark["text"].strip(): mark["start_idx"] is None for mark in problem["fws_annotations"].values()}
        for name, conversation in problem["conversations"].items():
            answer = _answer(problem, marks, name.split("|")[0], conversation["messages"])
            if answer:
                found[answer.text].append(answer)
    return tuple(same[0] for same in found.values() if len({answer.correct for answer in same}) == 1)


def _answer(problem: dict, marks: dict[str, bool], model: str, messages: list[dict]) -> Answer | None:
    """The answer of one conversation: system, user, model, user, model, where the last one sums up.

    `marks` says of the answers that people read whether they are faultless.
    """
    if len(messages) != 5 or any(message["error"] for message in messages):
        return None
    prompt, text, summary = (messages[i]["text"].strip() for i in (1, 2, 4))
    correct = _verdict(problem["_answer"], problem["_text"], summary)
    if text in marks:
        # A fault on the way to the right number is neither.
        correct = marks[text] or (None if correct else False)
    if correct is None:
        return None
    return Answer(problem["identifier"], problem["_answer"], prompt, model, text, correct)


def _verdict(gold: str, question: str, summary: str) -> bool | None:
    """Whether the sentence states the gold number; None unless it states one number, which is clearly the answer."""
    match = _GOLD.fullmatch(gold)
    if not match:
        return None
    expected, plain = Fraction(match[1]), _plain(summary)
    stated = {_value(number) for number in _STATED.findall(plain)}
    if stated == {expected}:
        return True
    # Where the gold number stands elsewhere in the sentence, and not from the question, that may be the answer.
    said = _numbers(plain) - _numbers(_plain(question))
    return False if len(stated) == 1 and expected not in said else None


def _plain(sentence: str) -> str:
    r"""Digits instead of words and LaTeX: "\(\frac{1}{2}\)" is "1/2", "at most two" is "at most 2"."""
    sentence = _MARKUP.sub("", sentence.replace("{,}", ",").replace("\N{MINUS SIGN}", "-"))
    sentence = _BOX.sub(r"\1", _FRACTION.sub(r"\1/\2", sentence))
    sentence = _WORD.sub(lambda match: str(_WORDS.index(match[0].lower())), sentence)
    return re.sub(r"\s+([.,;:)]|$)", r"\1", " ".join(sentence.split()))  # "\( 2 \)." leaves a space behind 2


def _numbers(plain: str) -> set[Fraction | None]:
    return {_value(number) for number in re.findall(_NUMBER, plain)}


def _value(number: str) -> Fraction | None:
    """None for a division by zero."""
    above, _, below = number.replace(",", "").partition("/")
    divisor = Fraction(below or 1)
    return Fraction(above) / divisor if divisor else None


def _row(chosen: Answer, rejected: Answer) -> dict:
    return {
        "prompt": [{"role": "user", "content": chosen.prompt}],
        "chosen": [{"role": "assistant", "content": chosen.text}],
        "rejected": [{"role": "assistant", "content": rejected.text}],
        "problem": chosen.problem,
        "answer": chosen.gold,
        "chosen_model": chosen.model,
        "rejected_model": rejected.model,
    }
