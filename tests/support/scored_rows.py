"""Rows to rate, and rewards called in this process."""

from dataclasses import dataclass, field
from functools import partial

from align.data.prompts import Prompt, Response
from align.scoring.process import MEMORY, attempt, rate
from align.scoring.score import arguments_of

TEXTS = ["seven", "7", "I say 7", ""]
PLAIN = [Prompt([1, 2], f"q{i}", f"q{i}", {"answer": str(i), "level": i}) for i in range(4)]
CHAT = [Prompt([1, 2], "...", [{"role": "user", "content": f"q{i}"}], {"answer": str(i)}) for i in range(4)]
RESPONSES = [Response(list(range(i)), [-1.0] * i, truncated=i == 3) for i in range(4)]


@dataclass
class Recorder:
    """A reward that keeps what it was called with."""

    values: list
    calls: list = field(default_factory=list)

    def __call__(self, **arguments):
        self.calls.append(arguments)
        return self.values


def arguments_for(prompts):
    return arguments_of(prompts, RESPONSES, TEXTS)


def rated(fn, **args):
    """What the function gives to the rows, called in this process."""
    return attempt(partial(rate, fn, arguments_for(PLAIN), args, 4), MEMORY)
