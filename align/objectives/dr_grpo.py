"""Dr.GRPO: Understanding R1-Zero-Like Training: A Critical Perspective, arXiv 2503.20783.

advantage = reward - mean(reward)                                               over the responses of a group
loss = sum over tokens of GRPO's loss / (responses * tokens_per_row)
"""

from __future__ import annotations

import math

from align.losses.loss import TokensPerRow
from align.losses.surrogate import clipped_surrogate
from align.objectives.objective import Objective
from align.ranges import ClipHigh, ClipLow, Divisor, DualClip
from align.transforms.advantage import group_advantage


def dr_grpo(
    *,
    tokens_per_row: Divisor,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = math.inf,
) -> Objective:
    """GRPO without its two divisions: by the group's std, and by each response's own length.

    `tokens_per_row` stands in for the length: TRL takes the token limit.

    Paper: Dr.GRPO, arXiv 2503.20783.
    Limit: `grpo` with `std: none` and the same aggregation is the same.
    """
    aggregation = TokensPerRow(tokens_per_row=tokens_per_row)
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, aggregation=aggregation)
    return Objective("dr_grpo", chain=(group_advantage(std="none"),), losses=(loss,))
