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
