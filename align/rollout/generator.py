"""The interface of engines that sample responses: `vllm_engine.py`, `served_engine.py` and `transformers_engine.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from align.config.sampling_keys import Sampling
from align.data.prompts import Response
from align.rollout.seeds import Seeds

LIKELIEST = 65  # next tokens that are compared: a support that is cut to 64 or fewer shows


@dataclass(frozen=True)
class SamplerLogprobs:
    """A sampler's log-probabilities of a few tokens, in nats."""

    prompt: list[float]  # of each prompt token but the first, at temperature 1
    following: dict[int, float]  # {next token: ...} of the likeliest and the one sampled, as it is sampled; -inf: never


@dataclass(frozen=True)
class Answer:
    """What one engine says of a few tokens."""

    logprobs: SamplerLogprobs
    settings: Mapping[str, Any]  # that it had for them: see `asked`
    vocabulary: Mapping[str, Tensor]  # the rows of its tables


class Generator(Protocol):
    """An engine on this rank. `sync` is collective; the others are not, but of processes that share an engine
    (`sampling.tensor_parallel`) all must make the same calls.

    It samples at a temperature from the support that the recipe's top_p, top_k and min_p leave (`model.cut`). A
    response ends behind an end token, behind the token that completes one of `sampling.stop`, or at the limit.
    """

    settings: Mapping[str, Any]  # of its newest call, as the engine had them: see `asked`

    def forget(self) -> None:
        """Forget what was computed of earlier prompts, which must not decide how the next ones are computed."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], *, n: int, temperature: float, max_tokens: int, seeds: Seeds
    ) -> list[list[Response]]:
        """Sample n responses to each prompt; temperature 0 is greedy. The same seeds give the same responses."""
        ...

    def sync(self, model: nn.Module) -> None:
        """Make the next `generate` sample from the model's current weights; wake up where it sleeps."""
        ...

    def sleep(self) -> None:
        """Leave its memory to the trainer as far as the recipe says, until the next `sync`."""
        ...

    def logprobs(self, ids: Sequence[int], *, temperature: float) -> SamplerLogprobs:
        """Log-probabilities of a prompt's tokens and of the next token, which is sampled just as `generate` does."""
        ...

    def score(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities, in nats at temperature 1, of each row's tokens but the first."""
        ...

    def vocabulary(self) -> dict[str, Tensor]:
        """The rows of its embedding and its head, as `learner.weights.vocabulary` has the trainer's; {} where it shares
        the trainer's weights."""
        ...

    def answers(self, ids: Sequence[int], *, temperature: float) -> Mapping[str, Answer]:
        """{engine: what it says of a prompt's tokens} of the engines that this rank has to check: its own, which needs
        no name, or its part of the servers, at least one."""
        ...

    def close(self) -> None:
        """Release memory and process groups; call it before the trainer ends its own."""
        ...


def answer_of(generator: Generator, ids: Sequence[int], temperature: float) -> Answer:
    """The answer of a generator that is one engine."""
    logprobs = generator.logprobs(ids, temperature=temperature)  # first, for the settings are those of the newest call
    return Answer(logprobs, generator.settings, generator.vocabulary())


def asked(sampling: Sampling, temperature: float, max_tokens: int) -> dict[str, Any]:
    """{setting: value} that a call should have: what decides which tokens are sampled, neutral values left out.

    An engine names whatever it has besides, such as a penalty. Greedy sampling (temperature 0) needs no support.
    """
    names, neutral = ("top_p", "top_k", "min_p", "stop") if temperature else ("stop",), Sampling()
    given = {name: getattr(sampling, name) for name in names}
    shaping = {name: value for name, value in given.items() if value != getattr(neutral, name)}
    return {"temperature": temperature, "max_tokens": max_tokens, **shaping}
