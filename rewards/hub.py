"""Rows of data sets on the hub under the names that align reads: problems with a gold answer, and preference pairs."""

from collections.abc import Iterable

from datasets import load_dataset

BOXED = "Reason step by step, and put your final answer within \\boxed{}."


def problems(
    *, path: str, question: str = "problem", answer: str = "answer", instruction: str = BOXED, split="train", **args
) -> list[dict]:
    """Return prompts of one user message, the problem with the instruction below it, and their gold answers.

    `question` and `answer` are the columns of the data set at `path` that hold them; `args` are further arguments of
    `datasets.load_dataset`. Raises ValueError where a column is missing.
    """
    rows = load_dataset(path, split=split, **args)
    _check(rows.column_names, (question, answer), path)
    return [
        {"prompt": [{"role": "user", "content": f"{row[question]}\n\n{instruction}"}], "answer": str(row[answer])}
        for row in rows
    ]


def preferences(*, path: str, split="train", **args) -> list[dict]:
    """Return pairs of conversations of which the chosen one has the higher score.

    The data set at `path` has the columns `chosen` and `rejected`, of messages, and `score_chosen` and
    `score_rejected`. Ties prefer nothing and are left out, as are pairs with an empty answer. Raises ValueError where a
    column is missing.
    """
    rows = load_dataset(path, split=split, **args)
    _check(rows.column_names, ("chosen", "rejected", "score_chosen", "score_rejected"), path)
    return [
        {"chosen": row["chosen"], "rejected": row["rejected"]}
        for row in rows
        if row["score_chosen"] > row["score_rejected"]
        and all(message["content"] for side in ("chosen", "rejected") for message in row[side])
        and row["chosen"][-1] != row["rejected"][-1]
    ]


def _check(there: Iterable[str], wanted: Iterable[str], path: str) -> None:
    """Raise ValueError where a column is missing."""
    if missing := [name for name in wanted if name not in there]:
        raise ValueError(f"{path}: has no column {missing[0]!r}; there are: {', '.join(there)}")
