"""What an objective is: data that the loop runs without knowing its name."""

from __future__ import annotations

from dataclasses import dataclass

from align.losses import Loss
from align.transforms import Transform


@dataclass(frozen=True)
class Objective:
    """Links applied in order, then a sum of losses."""

    name: str
    chain: tuple[Transform, ...]
    losses: tuple[Loss, ...]
    weight: float = 1.0  # share in a sum of several objectives
    data: str | None = None  # the source whose batch it reads, where a recipe has several

    @property
    def needs(self) -> set[str]:
        """Quantities that some link or loss reads, of the batch or of the policy now."""
        pieces = (*self.chain, *self.losses)
        return {n for p in pieces for n in p.needs} | {n for p in self.losses for n in p.differentiates}

    @property
    def preference(self) -> bool:
        """Whether it learns from chosen responses."""
        return "chosen" in self.needs

    @property
    def pairs(self) -> bool:
        """Whether it compares them with rejected ones, so that both are needed side by side."""
        return any(loss.unit == "pair" for loss in self.losses)
