"""Engines that sample responses. vLLM is imported in this file only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from align.data.prompts import Response


@dataclass(frozen=True)
class SamplerLogprobs:
    """What a sampler says about a few tokens, in nats."""

    prompt: list[float]  # of each prompt token but the first, at temperature 1
    following: dict[int, float]  # {token: ...} of the likeliest next tokens and the one sampled, as it samples


LIKELIEST = 65  # next tokens of a probe: a support that is cut to 64 or fewer shows


class Generator(Protocol):
    """An engine on this rank. `sync` is collective; `generate` and `probe` are not."""

    def generate(
        self, prompts: Sequence[Sequence[int]], *, n: int, temperature: float, max_tokens: int, seed: int
    ) -> list[list[Response]]:
        """n responses for each prompt; temperature 0 is greedy. The same seed gives the same responses."""
        ...

    def sync(self, model: nn.Module) -> None:
        """Make the next `generate` sample from the model's weights of now."""
        ...

    def logprobs(self, ids: Sequence[int], *, temperature: float) -> SamplerLogprobs:
        """What it says about a prompt and about the next token, sampled just as `generate` does."""
        ...

    def close(self) -> None:
        """Let go of memory and process groups; before the trainer ends its own."""
        ...
