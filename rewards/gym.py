"""Prompts and correctness from the procedural tasks of reasoning_gym.

`rewards.gym:<task>` is `prompts` with the task filled in, e.g. `rewards.gym:chain_sum`.
"""

import difflib
import json
import re
from dataclasses import fields
from functools import lru_cache, partial

from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS, create_dataset

from rewards import text

# Draws in a row without a new question after which a generator counts as exhausted.
PATIENCE = 2000

_EVALUATES = "its scorer evaluates the response as Python code"
_SYMPY = "its scorer gives the response to sympy.parse_expr, which evaluates it as Python code"

# Tasks whose scorer or generator is unfit for text that a model wrote (reasoning_gym 0.1.25).
REFUSED = {
    "binary_matrix": _EVALUATES,
    "n_queens": _EVALUATES,
    "spiral_matrix": _EVALUATES,
    "string_insertion": _EVALUATES,
    "countdown": _SYMPY,
    "intermediate_integration": _SYMPY,
    "polynomial_multiplication": _SYMPY,
    "puzzle24": _SYMPY,
    "simple_integration": _SYMPY,
    "composite": "it forwards to the scorers of other tasks, some of which evaluate the response",
    "codeio": "its generator executes programs from a data file",
    "coin_flip": "its scorer expands exponents exactly, so that '1e999999999' never ends",
    "propositional_logic": "its recursive scorer takes minutes on a response of many '¬'",
    "rubiks_cube": "its scorer writes 'R999999999' out as that many moves",
    "rush_hour": "its scorer plays 'A+999999999' as that many steps",
    "complex_arithmetic": "its scorer gives 1 to the response 'nan'",
    "game_of_life_halting": "its scorer gives 1 to every response that is not empty",
}

# What scorers raise on answers of an unexpected form: `int("x")`, a number where a list was
# expected, a missing key or index, a quotient too large for a float.
MALFORMED = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError)

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")

# One number in running text. `sign` is a sign only where no operand precedes it: "3-5" and "x-5"
# subtract, "= -5" and "(-5" do not. `rest` or `point` mark what is not an integer: 12.5, 1/2,
# 2e3, .5 and 1.2.3 are each read as a whole. Only ASCII digits count.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}])[-+])?(?P<point>(?<!\.)\.)?"
    r"(?<!\w)(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
    r"(?P<rest>(?:[./][0-9]+|[eE][-+]?[0-9]+)*)",
    re.ASCII,
)


def prompts(task: str, *, size: int = 1000, seed: int = 0, **params) -> list[dict]:
    """Return up to `size` rows of `task` with distinct questions.

    The rows are the same for the same arguments. A small task has fewer than `size`: the sums of
    two one-digit numbers (`chain_sum` with two terms of one digit) are only 200 questions. The
    generator counts as exhausted after `PATIENCE` draws in a row that bring no new question.

    Each row holds `prompt` (one user message), `answer` (the gold answer, "" where the task has no
    single one), `task`, and `entry` (JSON of question, answer, metadata and params, for `correct`).

    `params` are the fields of the task's reasoning_gym configuration. Raises ValueError for an
    unknown task, for one of the `REFUSED` (whatever its answers: none of them asks for single
    integers), for a size below 1, and for parameters that the configuration does not take.
    """
    _check_known(task)
    if task in REFUSED:
        raise ValueError(f"reasoning_gym task {task!r} is refused: {REFUSED[task]}")
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    rows, seen, idle, chunk = [], set(), 0, 0
    while len(rows) < size and idle < PATIENCE:
        # Item i of a dataset is drawn with seed + i, so shifting by whole sizes repeats no draw.
        dataset = _dataset(task, size=size, seed=seed + chunk * size, **params)
        chunk += 1
        for index in range(size):
            item = dataset[index]
            if item["question"] in seen:
                idle += 1
                continue
            idle = 0
            seen.add(item["question"])
            rows.append(_row(task, item, params))
            if len(rows) == size:
                break
    return rows


def correct(prompts, completions, completion_ids, *, answer, task, entry, **columns):
    """Score responses to rows of `prompts`: 1.0 right, 0.0 wrong.

    Where the gold answer is an integer, the last number of the response decides: 1.0 if it is that
    integer. Thousands may be grouped ("1,000"), a sentence may end after it ("7."), a sign counts
    unless an operand stands before it ("-5" and "= -5" are minus five, "3-5" ends in five), and
    U+2212 is a minus. Decimals, fractions and exponents ("12.5", "7.0", "1/2", "1e3") are numbers
    but no integers, so a response that ends in one is wrong; digits inside a name ("x5") and
    digits that are not ASCII are no numbers.

    Otherwise reasoning_gym's scorer for the task reads the whole stripped response. Its value lies
    in [0, 1]; many tasks give a part of 1 to a near miss, or to a response that contains the
    answer among other text. An answer that it cannot read (one of the `MALFORMED` exceptions) is a
    wrong answer and gets 0.0.

    Raises ValueError for an unknown task, and for one of the `REFUSED` unless the row's gold
    answer is an integer (the scorer is then never called).
    """
    return [_score(text(completion), *row) for completion, *row in zip(completions, answer, task, entry, strict=True)]


def last_integer(response: str) -> str | None:
    """Return the last number of `response` in canonical form ("-5"), None if it is no integer.

    Text, not `int`: Python refuses to convert very long digit strings. `correct` has the rule.
    """
    numbers = list(_NUMBER.finditer(response.replace("\N{MINUS SIGN}", "-")))
    if not numbers or numbers[-1]["point"] or numbers[-1]["rest"]:
        return None
    match = numbers[-1]
    digits = match["digits"].replace(",", "").lstrip("0")
    if not digits:
        return "0"
    return "-" + digits if match["sign"] == "-" else digits


def _score(response: str, answer: str, task: str, entry: str) -> float:
    _check_known(task)
    if _INTEGER.fullmatch(answer):
        return float(last_integer(response) == answer)
    if task in REFUSED:
        raise ValueError(f"reasoning_gym task {task!r} is refused: {REFUSED[task]}")
    item = json.loads(entry)
    if task in ("arc_agi", "rearc"):
        # These two compare tuples, which JSON has turned into lists.
        item["metadata"]["output"] = tuple(map(tuple, item["metadata"]["output"]))
    scorer = _scorer(task, json.dumps(item["params"], sort_keys=True))
    try:
        return float(scorer.score_answer(response.strip(), item))
    except MALFORMED:
        return 0.0


@lru_cache(maxsize=64)
def _scorer(task: str, params: str) -> ProceduralDataset:
    # Some scorers read their tolerance from the configuration, so it has to be the prompts'.
    return _dataset(task, size=1, seed=0, **json.loads(params))


def _row(task: str, item: dict, params: dict) -> dict:
    entry = {key: item[key] for key in ("question", "answer", "metadata")} | {"params": params}
    return {
        "prompt": [{"role": "user", "content": item["question"]}],
        "answer": item["answer"] or "",
        "task": task,
        "entry": json.dumps(entry),
    }


def _dataset(task: str, **params) -> ProceduralDataset:
    """Build a reasoning_gym dataset; ValueError with the fields if it does not take `params`."""
    try:
        return create_dataset(task, **params)
    # The configurations check their fields with `assert`.
    except (TypeError, ValueError, AssertionError) as error:
        takes = ", ".join(f.name for f in fields(DATASETS[task][1]))
        raise ValueError(f"reasoning_gym task {task!r} with {params}: {error}; its parameters are {takes}") from error


def _check_known(task: str) -> None:
    if task not in DATASETS:
        near = ", ".join(difflib.get_close_matches(task, DATASETS)) or "nothing similar"
        raise ValueError(f"no reasoning_gym task {task!r}; there is {near}")


def __getattr__(name: str) -> partial:
    # PEP 562: `rewards.gym:chain_sum` is `prompts` for that task.
    try:
        _check_known(name)
    except ValueError as error:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: {error}") from None
    return partial(prompts, name)
