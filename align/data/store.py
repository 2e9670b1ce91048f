"""Rows that stay on disk. A `Prompt` is made each time that one is asked for; in memory are a few numbers of each.

The file has no name, so nobody else writes to it and nothing of it is left behind. It is in the folder for temporary
files, which the variable TMPDIR names.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any, BinaryIO, overload

import numpy as np

from align.config.problems import shortened
from align.data.prompts import DataError, Pair, Prompt
from align.data.tokenise import is_open

NUMBERS = 5  # of each row, in memory: tokens of the prompt and of both answers, how many of those are cut, the form

NONE = -1  # tokens of an answer that there is not


@dataclass(frozen=True)
class Form:
    """What many rows have in common."""

    pair: bool
    conversational: bool
    open: bool  # the last message is left empty for an environment to fill
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Sizes:
    """Lengths of rows, in their order."""

    prompt: np.ndarray  # [N] tokens
    answers: np.ndarray  # [N,2] tokens, the chosen one first; NONE where a row has no such answer
    cut: np.ndarray  # [N] number of answers that are cut


class CannotKeep(ValueError):
    """A value of a row cannot be written down."""


class NoRoom(DataError):
    """The disk is full."""


class Store:
    """Takes prompts and keeps them on disk."""

    def __init__(self) -> None:
        self.file: BinaryIO = tempfile.TemporaryFile(prefix="align-")  # noqa: SIM115 (open as long as rows are read)
        self.ends = array("q", [0])  # where each row ends in the file
        self.numbers = array("i")
        self.forms: dict[Form, int] = {}

    def add(self, prompt: Prompt) -> None:
        """Keep a prompt. Raises `CannotKeep` and `NoRoom`."""
        data = _packed(prompt)
        with _room():
            self.file.write(data)
        self.ends.append(self.ends[-1] + len(data))
        number = self.forms.setdefault(_form(prompt), len(self.forms))
        self.numbers.extend((*_lengths(prompt), number))

    def flush(self) -> None:
        """Write what waits, so that it can be read. Raises `NoRoom`."""
        with _room():
            self.file.flush()

    def __len__(self) -> int:
        return len(self.ends) - 1

    def rows(self) -> Stored:
        """All that it has, in the order in which they came; none is read before `flush`."""
        places = np.arange(len(self))
        numbers = np.array(self.numbers, np.intc).reshape(-1, NUMBERS)
        return Stored(self.file, np.array(self.ends, np.int64), numbers, [*self.forms], places)


class Stored(Sequence[Prompt]):
    """Prompts on disk, some of those of a store in an order of their own. Several threads may read it."""

    def __init__(
        self, file: BinaryIO, ends: np.ndarray, numbers: np.ndarray, forms: Sequence[Form], places: np.ndarray
    ):
        self._file, self._ends, self._numbers, self._forms = file, ends, numbers, forms  # of the whole store
        self.places = places  # [n] of these rows in it

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Stored: ...
    def __getitem__(self, index):
        return self.take(index) if isinstance(index, slice) else self._made(self.places[index])

    def __iter__(self) -> Iterator[Prompt]:
        return map(self._made, self.places)

    def take(self, which: slice | np.ndarray | list[int]) -> Stored:
        """Those at these places of the sequence, or where a mask is true; nothing is read."""
        return Stored(self._file, self._ends, self._numbers, self._forms, self.places[which])

    def of(self, wanted: Callable[[Form], bool]) -> Stored:
        """Those whose form is wanted."""
        fits = np.array([wanted(form) for form in self._forms], bool)
        return self.take(fits[self._own[:, -1]])

    @property
    def _own(self) -> np.ndarray:
        """[n, NUMBERS] of these rows."""
        return self._numbers[self.places]

    def sizes(self) -> Sizes:
        """Their lengths."""
        return _sizes(self._own)

    def forms(self) -> Counter[Form]:
        """How many have each form."""
        counts = np.bincount(self._own[:, -1], minlength=len(self._forms)).tolist()
        return Counter({form: count for form, count in zip(self._forms, counts, strict=True) if count})

    def _made(self, place: int) -> Prompt:
        start = int(self._ends[place])
        return pickle.loads(os.pread(self._file.fileno(), int(self._ends[place + 1]) - start, start))


def sizes(prompts: Sequence[Prompt]) -> Sizes:
    """The lengths of prompts; of those on disk none is read."""
    if isinstance(prompts, Stored):
        return prompts.sizes()
    return _sizes(np.array([_lengths(prompt) for prompt in prompts], np.intc).reshape(-1, NUMBERS - 1))


def forms(prompts: Sequence[Prompt]) -> Counter[Form]:
    """How many prompts have each form; of those on disk none is read."""
    return prompts.forms() if isinstance(prompts, Stored) else Counter(map(_form, prompts))


def longest(prompts: Sequence[Prompt]) -> Prompt:
    """The first of the prompts with the most tokens."""
    return prompts[int(sizes(prompts).prompt.argmax())]


def shortest(prompts: Sequence[Prompt], count: int) -> list[tuple[int, ...]]:
    """The tokens of the shortest prompts, each once, at most so many; of one length the first by their numbers."""
    lengths, out = sizes(prompts).prompt, []
    for length in np.unique(lengths):
        found: set[tuple[int, ...]] = set()
        for i in np.flatnonzero(lengths == length):
            found.add(tuple(prompts[int(i)].ids))
            if len(found) > 2 * count:
                found = set(nsmallest(count, found))
        out += sorted(found)
        if len(out) >= count:
            break
    return out[:count]


def _sizes(numbers: np.ndarray) -> Sizes:
    return Sizes(numbers[:, 0], numbers[:, 1:3], numbers[:, 3])


def _lengths(prompt: Prompt) -> tuple[int, int, int, int]:
    if not isinstance(prompt, Pair):
        return len(prompt.ids), NONE, NONE, 0
    rejected = NONE if prompt.rejected is None else len(prompt.rejected.ids)
    return len(prompt.ids), len(prompt.chosen.ids), rejected, sum(answer.truncated for answer in prompt.answers)


def _form(prompt: Prompt) -> Form:
    talks = prompt.conversational
    return Form(isinstance(prompt, Pair), talks, talks and is_open(prompt.prompt), tuple(prompt.columns))


def _packed(prompt: Prompt) -> bytes:
    try:
        return pickle.dumps(prompt, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        name, value = next(((n, v) for n, v in prompt.columns.items() if not _can_be_packed(v)), ("prompt", None))
        what = f"column {name!r} holds {shortened(value)}, which cannot be written down ({error})"
        raise CannotKeep(f"{what}; give text, numbers, lists or dictionaries") from error


def _can_be_packed(value: Any) -> bool:
    try:
        pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"the rows cannot be kept in {tempfile.gettempdir()}: {error.strerror or error}"
        raise NoRoom(f"data: {what}; make room, or name a folder on another disk by TMPDIR") from error
