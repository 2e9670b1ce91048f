"""The type of an objective: data that the loop runs without knowing its name."""

from __future__ import annotations

from dataclasses import dataclass

from align.losses.loss import Loss
from align.transforms.transform import Transform


@dataclass(frozen=True)
class Objective:
    """Transforms applied in order, then a sum of losses."""

    name: str
    chain: tuple[Transform, ...]
    losses: tuple[Loss, ...]
    weight: float = 1.0  # factor in a sum of several objectives
    data: str | None = None  # the source whose batch it reads, where a recipe has several

    @property
    def reads(self) -> set[str]:
        """Quantities of the batch that some transform or loss reads."""
        return {name for piece in (*self.chain, *self.losses) for name in piece.needs}

    @property
    def needs(self) -> set[str]:
        """Quantities of the batch, and of the current policy besides its log-probability, that some piece reads."""
        return self.reads | {name for loss in self.losses for name in loss.reads_current}

    @property
    def preference(self) -> bool:
        """Whether it learns from chosen responses."""
        return "chosen" in self.needs

    @property
    def pairs(self) -> bool:
        """Whether it compares chosen with rejected responses, so that both are needed side by side."""
        return any(loss.unit == "pair" for loss in self.losses)
