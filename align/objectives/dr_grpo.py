"""Dr.GRPO: arXiv 2503.20783."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Lt

from align.losses import TokensPerRow, clipped_surrogate
from align.objectives.objective import Objective
from align.transforms import group_advantage


def dr_grpo(
    *,
    tokens_per_row: Annotated[float, Gt(0)],
    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2,
    clip_high: Annotated[float, Ge(0)] = 0.2,
) -> Objective:
    """GRPO without its two divisions: by the group's std, and by each response's own length.

    `tokens_per_row` stands in for the length: TRL takes the token limit.

    Paper: Dr.GRPO, arXiv 2503.20783.
    Limit: `grpo` with `std: none` and the same aggregation is the same.
    """
    aggregation = TokensPerRow(tokens_per_row=tokens_per_row)
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, aggregation=aggregation)
    return Objective("dr_grpo", chain=(group_advantage(std="none"),), losses=(loss,))
