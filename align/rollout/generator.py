"""The interface of engines that sample responses: `vllm_engine.py` and `transformers_engine.py` have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from align.data.prompts import Response

LIKELIEST = 65  # next tokens that are compared: a support that is cut to 64 or fewer shows


@dataclass(frozen=True)
class SamplerLogprobs:
    """A sampler's log-probabilities of a few tokens, in nats."""

    prompt: list[float]  # of each prompt token but the first, at temperature 1
    following: dict[int, float]  # {next token: ...} of the likeliest and the one sampled, at the sampling temperature


class Generator(Protocol):
    """An engine on this rank. `sync` is collective; `generate` and `logprobs` are not."""

    def generate(
        self, prompts: Sequence[Sequence[int]], *, n: int, temperature: float, max_tokens: int, seed: int
    ) -> list[list[Response]]:
        """Sample n responses to each prompt; temperature 0 is greedy. The same seed gives the same responses."""
        ...

    def sync(self, model: nn.Module) -> None:
        """Make the next `generate` sample from the model's current weights."""
        ...

    def logprobs(self, ids: Sequence[int], *, temperature: float) -> SamplerLogprobs:
        """Log-probabilities of a prompt's tokens and of the next token, which is sampled just as `generate` does."""
        ...

    def close(self) -> None:
        """Release memory and process groups; call it before the trainer ends its own."""
        ...
