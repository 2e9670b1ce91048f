"""Prompts, preference pairs and responses, as every part of a run passes them on."""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

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
    variables: dict[str, Any] = field(default_factory=dict, kw_only=True)  # of the chat template

    @property
    def conversational(self) -> bool:
        """Whether the row's prompt is a list of messages."""
        return not isinstance(self.prompt, str)


POLICY = "assistant"  # the role whose tokens the policy chooses


@dataclass(frozen=True)
class Turn:
    """A stretch of a response that one side wrote."""

    role: str  # `POLICY`, or who else put the tokens in, such as user or tool: the policy only reads those
    start: int  # its first token in the response
    end: int  # behind its last one
    text: str = ""
    reward: float | None = None  # what the turn earned by itself
    state: int | None = None  # hash of what the policy saw before it


@dataclass(frozen=True)
class Answer:
    """A response that the data brings along."""

    ids: list[int]  # its end token included
    text: str
    truncated: bool  # cut at data.max_response_tokens
    turns: tuple[Turn, ...] = ()  # in order, from the first token to the last; none where the policy chose all in one


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


Ended = Literal["terminated", "truncated", "max_turns", "budget", "failed"]  # the first two by the environment


@dataclass(frozen=True)
class Episode:
    """How a response of several turns went in its environment, beside its tokens."""

    environment: str  # name of its reward
    ended: Ended
    messages: list[dict[str, Any]] = field(default_factory=list)  # of both sides, those behind the last turn too
    reward: float | None = None  # before its weight; None: the environment gives none
    success: bool | None = None  # None: the environment does not say
    calls: int = 0  # of tools
    failed_calls: int = 0  # those that the model was told an error of
    attributes: dict[str, Any] = field(default_factory=dict)  # of the environment at the end, as far as they are data
    why: str | None = None  # it failed: the response takes no part


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    ids: list[int]  # its end token included, where it has one
    logprobs: list[float]  # nats, at the temperature it was sampled with; 0 for what the policy did not choose
    truncated: bool  # stopped by the token limit, or cut short by its environment
    turns: tuple[Turn, ...] = ()  # in order, from the first token to the last; none where the policy chose all in one
    episode: Episode | None = None

    @property
    def length(self) -> int:
        """Tokens that the policy chose."""
        return sum(number >= 0 for number in turn_numbers(len(self.ids), self.turns))

    @property
    def turn_count(self) -> int:
        """Turns of the policy."""
        return sum(turn.role == POLICY for turn in self.turns) if self.turns else 1


@dataclass(frozen=True)
class Prompts:
    """Training and held-out prompts, or pairs; no text of a prompt is in both."""

    train: Sequence[Prompt]
    held_out: Sequence[Prompt]
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


def turn_numbers(size: int, turns: Sequence[Turn]) -> list[int]:
    """The number of the policy's turn, from 0, of each of `size` tokens; -1 where others put the token in."""
    if not turns:
        return [0] * size
    out = [-1] * size
    for number, turn in enumerate(turn for turn in turns if turn.role == POLICY):
        out[turn.start : turn.end] = [number] * (turn.end - turn.start)
    return out


def pairs_in(prompts: Iterable[Prompt]) -> list[Pair]:
    """The pairs among the prompts."""
    return [prompt for prompt in prompts if isinstance(prompt, Pair)]


def fingerprint(prompts: Iterable[Prompt]) -> str:
    """SHA-256 over prompts in their order: tokens of prompt and responses, their turns, and the other columns."""
    digest = hashlib.sha256()
    for prompt in prompts:
        answers = [_told(answer) for answer in prompt.answers] if isinstance(prompt, Pair) else []
        digest.update(json.dumps([prompt.ids, answers, prompt.columns], default=str).encode() + b"\n")
    return digest.hexdigest()


def _told(answer: Answer) -> list:
    turns = [[turn.role, turn.start, turn.end] for turn in answer.turns]
    return [answer.ids, turns] if turns else answer.ids


@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> array[int]:
    """The order of an epoch."""
    return array("q", random.Random(f"{seed}-{epoch}").sample(range(size), size))
