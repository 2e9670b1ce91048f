"""The random numbers of sampling: every one of them comes from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PROBE = 0  # of the token that a probe samples: processes that share an engine must sample the same one


@dataclass(frozen=True)
class Seeds:
    """The seeds of one engine's call."""

    stream: int  # for an engine that takes all random numbers of a call from one stream
    requests: Sequence[int]  # one a prompt, for an engine that keeps a stream for each


@dataclass(frozen=True)
class Draw:
    """One call of the samplers of all ranks: it decides their random numbers.

    With a seed a prompt its responses depend on this and on the prompt's number alone, whichever rank samples them and
    beside which others; only rounding can still tell. With one stream they depend on the group and on the batch too.
    """

    seed: int  # of the run
    position: int  # of the data
    purpose: int  # training, or a part of the evaluation
    source: int = 0  # its place among the recipe's sources

    def seeds(self, group: int, prompts: Sequence[int]) -> Seeds:
        """The seeds of a group of processes that samples responses to the prompts with these numbers."""
        return Seeds(self._of(group), [self._of(number) for number in prompts])

    def turn(self, group: int, episodes: Sequence[tuple[int, int]], turn: int) -> Seeds:
        """The seeds of a group of processes for a turn, from 0, of episodes: (number of the prompt, number in its
        group) of each."""
        requests = [seed_of(self._of(prompt), index, turn) for prompt, index in episodes]
        return Seeds(seed_of(self._of(group), turn), requests)

    def episode(self, prompt: int) -> int:
        """The seed of the environment of all episodes of a prompt, which begin alike."""
        return self._of(prompt)

    def _of(self, number: int) -> int:
        apart = [self.source] if self.source else []
        return seed_of(self.seed, self.position, number, self.purpose, *apart)


def seed_of(*numbers: int) -> int:
    """A seed for one purpose, step and rank; near inputs give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
