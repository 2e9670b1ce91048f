"""Adaptive difficulty of GFPO (arXiv 2508.09726, Algorithm 2): harder prompts keep more responses."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from pydantic import BaseModel, ConfigDict
from torch import Tensor


class AdaptiveK(BaseModel):
    """How many responses to keep for each quartile of difficulty, hardest first; the paper's values at G = 16.

    `warmup_prompts`: until so many prompts were seen, every prompt counts as very hard. The paper says "a few
    steps" and no number; the default, one step of its 64 prompts, is reconstructed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    very_hard: Annotated[int, Ge(2)] = 8
    hard: Annotated[int, Ge(2)] = 8
    medium: Annotated[int, Ge(2)] = 6
    easy: Annotated[int, Ge(2)] = 4
    warmup_prompts: Annotated[int, Ge(1)] = 64

    def levels(self) -> tuple[int, int, int, int]:
        return self.very_hard, self.hard, self.medium, self.easy


class DifficultyTracker:
    """Mean rewards of all prompts seen so far, with exact quartiles.

    The paper keeps a t-digest; it interpolates between the few values that a mean of 0/1 rewards can take and
    so flips the strict comparisons (0.2456 where the quartile is 0.25). Eight bytes a prompt is cheap.
    """

    def __init__(self, k: AdaptiveK):
        self.k = k
        self.seen: list[float] = []

    def update(self, mean_reward_Q: Tensor) -> Tensor:
        """[Q] int64 k of each prompt, in order: its own mean enters before the quartiles are read; strict <."""
        out = []
        for mean in mean_reward_Q.tolist():
            self.seen.append(mean)
            out.append(self.k.levels()[self._quartile(mean)])
        return torch.tensor(out, dtype=torch.int64)

    def _quartile(self, mean: float) -> int:
        if len(self.seen) < self.k.warmup_prompts:
            return 0
        return int((mean >= np.percentile(self.seen, [25, 50, 75])).sum())

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])
