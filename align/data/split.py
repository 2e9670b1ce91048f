"""Split the rows of a source into training and held out, by numbers that say which rows are known by the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from align.config.data_keys import Data
from align.config.problems import nearest
from align.data.prompts import DataError, Prompt, Prompts
from align.data.store import Stored

KnownBy = Callable[[Prompt], str]


@dataclass(frozen=True)
class Rows:
    """The rows of a source and of its evaluation prompts that can be used, and the problems of the others."""

    everything: Stored  # those of the source itself, then evaluation prompts
    size: int  # number of the former
    known_by: np.ndarray  # [N] of `everything`: equal where rows may not stand on both sides of the holdout
    groups: np.ndarray  # [N] likewise, by data.holdout_by
    problems: list[str]
    dropped: int = 0  # rows with a prompt longer than data.max_prompt_tokens, where data.long_prompts is drop

    @property
    def own(self) -> Stored:
        """The rows of the source itself."""
        return self.everything[: self.size]


class Labels:
    """Tells texts apart by 16 bytes of each."""

    def __init__(self) -> None:
        self.digests = bytearray()

    def add(self, text: str) -> None:
        """Take the text of the next row."""
        self.digests += blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()

    def numbers(self) -> np.ndarray:
        """[N] int64 of the rows, equal where their texts are."""
        halves = np.frombuffer(bytes(self.digests), np.uint64).reshape(-1, 2)
        order = np.lexsort(halves.T)
        new = (halves[order[1:]] != halves[order[:-1]]).any(1)
        out = np.zeros(len(halves), np.int64)
        out[order[1:]] = np.cumsum(new)
        return out


def by_text(prompt: Prompt) -> str:
    """What a prompt is known by: rows of the same text do not stand on both sides of the holdout."""
    return prompt.text


def by_row(prompt: Prompt) -> str:
    """What a prompt is known by where an environment makes something else of each row: its text and its columns."""
    return f"{prompt.text}{prompt.columns!r}"


def by_column(name: str | None) -> KnownBy:
    """What a prompt is known by where whole groups stay together; by repr, since a column may hold lists."""
    return lambda prompt: repr(prompt.columns.get(name))


def split_rows(data: Data, rows: Rows, seed: int) -> Prompts:
    """Split rows into training and held-out prompts.

    Raises `DataError` with all problems of the rows, and where none is left to train on.
    """
    if rows.problems:
        raise DataError(*rows.problems)
    size = rows.size
    name, source = ("prompts", data.prompts) if data.prompts else ("pairs", data.pairs)
    if data.episodes:
        return Prompts(rows.own[: data.episodes], rows.everything[data.episodes :])
    held_out = np.array([*_hold_out(rows, data, seed), *range(size, len(rows.everything))], int)
    train = ~np.isin(rows.known_by[:size], rows.known_by[held_out])
    if data.holdout_by:
        train &= ~np.isin(rows.groups[:size], rows.groups[held_out])
    if not train.any():
        raise DataError(f"data.{name}: {source}: all {size} stand in data.eval_prompts too")
    return Prompts(rows.own.take(train), rows.everything.take(held_out), rows.dropped)


def _hold_out(rows: Rows, data: Data, seed: int) -> Iterable[int]:
    """Choose the places of `data.holdout` distinct prompts by the seed; with `data.holdout_by`, of whole groups that
    share a value of that column, so that there may be a few more. Raises `DataError`."""
    count, by = data.holdout, data.holdout_by
    distinct = _distinct(rows.known_by[: rows.size])
    if count >= len(distinct):
        raise DataError(f"data.holdout: {count} of {len(distinct)} distinct prompts leaves none to train on")
    draw = random.Random(seed)
    if by is None:
        return distinct[draw.sample(range(len(distinct)), count)]
    if any(by not in form.columns for form in rows.own.take(distinct).forms()):
        prompt = next(prompt for prompt in rows.own.take(distinct) if by not in prompt.columns)
        what = f"a row has no column {by!r}; {nearest(by, prompt.columns)}"
        raise DataError(f"data.holdout_by: {what}: {prompt.text[:60]!r}...")
    groups, held_out = rows.groups[distinct], []
    labels = groups[_first(groups)]
    for label in labels[draw.sample(range(len(labels)), len(labels))]:
        if len(held_out) >= count:
            break
        held_out += distinct[groups == label].tolist()
    if len(held_out) == len(distinct):
        raise DataError(f"data.holdout_by: {count} prompts of whole groups of {by!r} leave none to train on")
    return held_out


def _first(labels: np.ndarray) -> np.ndarray:
    """The places of the first row of each label, ascending."""
    return np.sort(np.unique(labels, return_index=True)[1])


def _distinct(labels: np.ndarray) -> np.ndarray:
    """The place of the last row of each label, in the order in which the labels come first."""
    _, first = np.unique(labels, return_index=True)
    _, from_behind = np.unique(labels[::-1], return_index=True)
    return (len(labels) - 1 - from_behind)[np.argsort(first)]
