"""Rewards for the form of a response: a pattern to match, and repeated tokens."""

import re

from rewards import text


def format_match(prompts, completions, completion_ids, *, pattern: str, **columns):
    """Return 1.0 where the whole response matches the regular expression `pattern`, else 0.0.

    "." matches newlines too. Raises ValueError if `pattern` is no regular expression. Python's
    matching can take exponential time: write no nested repeats such as "(a+)+".
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from error
    return [float(compiled.fullmatch(text(c)) is not None) for c in completions]


def repetition_penalty(prompts, completions, completion_ids, *, ngram_size: int = 5, weight: float = 1.0, **columns):
    """Return -weight * (1 - unique / all) over the response's n-grams of tokens.

    In [-weight, 0]; 0 for a response shorter than `ngram_size` tokens. This is the penalty of
    "Demystifying Long Chain-of-Thought Reasoning" (arXiv 2502.03373, appendix C.2) over token ids,
    here a stand-in for R_rep of Phi-4-reasoning. Raises ValueError for an `ngram_size` below 1 and
    for a negative weight.
    """
    if ngram_size < 1:
        raise ValueError(f"ngram_size must be at least 1, not {ngram_size}")
    if weight < 0:
        raise ValueError(f"weight must not be negative, but is {weight}")
    return [-weight * _repeated(ids, ngram_size) for ids in completion_ids]


def _repeated(ids: list[int], n: int) -> float:
    """Share of the n-grams of `ids` that repeat another one, in [0, 1)."""
    ngrams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
