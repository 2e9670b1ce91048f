"""Prompts, preference pairs and responses, as every part of a run passes them on."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from align.system.problems import ProblemList


class DataError(ProblemList):
    """Data cannot be used; each problem names the source, the row and the fix."""

    def __init__(self, *problems: str):
        super().__init__(problems)


@dataclass(frozen=True)
class Prompt:
    """One row of a source, tokenised."""

    ids: list[int]  # tokens that the model is given
    text: str  # the same before tokenisation, chat template applied
    prompt: Any  # the row's own prompt, text or messages, as reward functions get it
    columns: dict[str, Any]  # the row's other columns, for reward functions

    @property
    def conversational(self) -> bool:
        """Whether the row's prompt is a list of messages."""
        return not isinstance(self.prompt, str)


@dataclass(frozen=True)
class Answer:
    """A response that the data brings along."""

    ids: list[int]  # its end token included
    text: str
    truncated: bool  # cut at data.max_response_tokens


@dataclass(frozen=True)
class Pair(Prompt):
    """A prompt with a chosen response, and a rejected one where there is something to compare with."""

    chosen: Answer
    rejected: Answer | None
    row: int  # its place in the source

    @property
    def answers(self) -> list[Answer]:
        """The responses, the chosen one first."""
        return [self.chosen] if self.rejected is None else [self.chosen, self.rejected]


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    ids: list[int]  # its end token included, where it has one
    logprobs: list[float]  # nats, at the temperature it was sampled with
    truncated: bool  # stopped by the token limit


@dataclass(frozen=True)
class Prompts:
    """Training and held-out prompts, or pairs; no text of a prompt is in both."""

    train: list[Prompt]
    held_out: list[Prompt]
    dropped: int = 0  # rows left out for the length of their prompt

    def step(self, step: int, count: int, seed: int) -> list[Prompt]:
        """The `count` training prompts of a step, a pure function of the step: a resumed run goes on where it was.

        Each epoch goes through the data in a new order; a step may take prompts of two epochs.
        """
        size = len(self.train)
        out = []
        for position in range(step * count, (step + 1) * count):
            epoch, offset = divmod(position, size)
            out.append(self.train[_order(size, seed, epoch)[offset]])
        return out


def pairs_in(prompts: Sequence[Prompt]) -> list[Pair]:
    """The pairs among the prompts."""
    return [prompt for prompt in prompts if isinstance(prompt, Pair)]


def fingerprint(prompts: list[Prompt]) -> str:
    """SHA-256 over prompts in their order: tokens of prompt and responses, and the other columns."""
    digest = hashlib.sha256()
    for prompt in prompts:
        answers = [answer.ids for answer in prompt.answers] if isinstance(prompt, Pair) else []
        digest.update(json.dumps([prompt.ids, answers, prompt.columns], default=str).encode() + b"\n")
    return digest.hexdigest()


@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch."""
    return random.Random(f"{seed}-{epoch}").sample(range(size), size)
