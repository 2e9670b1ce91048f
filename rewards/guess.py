"""A number game for `environment`, in the contract of text: `rewards.guess:Guess`.

The rules are those of textarena's GuessTheNumber, in fewer words: its prompt of about 600 characters, most of them on
brackets and penalties, is more than a model of 135M parameters follows.
"""

import random
import re
from fractions import Fraction
from functools import cache
from typing import NamedTuple

NUMBER = re.compile(r"\d+", re.ASCII)


class Guess:
    """A number from `low` to `high` is to be found by hints. The game never ends before it is: `max_turns` ends it.

    Finding it earns 1, any other guess that the hints so far allow `allowed`; what they exclude, and a reply without a
    number, earns nothing. The guess is the first number of the reply.
    """

    def __init__(self, low: int = 1, high: int = 8, allowed: float = 0.1):
        self.low, self.high, self.allowed = low, high, allowed
        self.first, self.last = low, high  # what the hints leave

    def reset(self, **row) -> tuple[str, dict]:
        """Choose a number, by the seed that was set for the episode."""
        self.first, self.last = self.low, self.high
        self._secret = random.randint(self.low, self.high)
        return f"Guess my number. It is from {self.low} to {self.high}. Say only a number.", self._info(False)

    def step(self, reply: str) -> tuple[str, float, bool, bool, dict]:
        """Take a guess: the hint, and what it earned."""
        found = NUMBER.search(reply)
        if found is None or len(found[0]) > len(str(self.high)):
            return f"Say a number from {self.low} to {self.high}.", 0.0, False, False, self._info(False)
        guess = int(found[0])
        if guess == self._secret:
            return "Yes!", 1.0, True, False, self._info(True)
        fits = self.first <= guess <= self.last
        lower = guess > self._secret
        if lower:
            self.last = min(self.last, guess - 1)
        else:
            self.first = max(self.first, guess + 1)
        hint = f"{'Lower' if lower else 'Higher'} than {guess}."
        return hint, self.allowed if fits else 0.0, False, False, self._info(False)

    def _info(self, found: bool) -> dict:
        return {"success": found, "anchor": f"{self.first}-{self.last}"}


class Expected(NamedTuple):
    """What a way to play comes to on average, exactly."""

    success: Fraction
    turns: Fraction
    reward: Fraction


WAYS = {
    "any number": lambda low, high, first, last: range(low, high + 1),
    "the lowest that the hints leave": lambda low, high, first, last: [first],
    "any number that the hints leave": lambda low, high, first, last: range(first, last + 1),
    "the middle of what the hints leave": lambda low, high, first, last: [(first + last) // 2],
}


def expected(way: str, *, low: int = 1, high: int = 8, turns: int = 4, allowed: Fraction = Fraction(1, 10)) -> Expected:
    """Return what one of `WAYS` to play comes to, over all numbers that may be sought and all guesses it may make."""
    return _expected(WAYS[way], low, high, low, high, turns, allowed)


@cache
def _expected(way, low: int, high: int, first: int, last: int, turns: int, allowed: Fraction) -> Expected:
    """The same from where the hints leave `first` to `last`, all alike likely, and so many turns are left."""
    if not turns:
        return Expected(Fraction(0), Fraction(0), Fraction(0))
    guesses, size, total = way(low, high, first, last), last - first + 1, [Fraction(0)] * 3
    for guess in guesses:
        fits = first <= guess <= last
        for begin, end in ((first, min(last, guess - 1)), (max(first, guess + 1), last)):
            if begin <= end:  # else the number is not on this side
                rest = _expected(way, low, high, begin, end, turns - 1, allowed)
                here = (rest.success, 1 + rest.turns, rest.reward + fits * allowed)
                total = [x + Fraction(end - begin + 1, size) * y for x, y in zip(total, here, strict=True)]
        if fits:
            total = [x + Fraction(y, size) for x, y in zip(total, (1, 1, 1), strict=True)]
    return Expected(*(x / len(guesses) for x in total))
