"""DAPO: arXiv 2503.14476."""

from __future__ import annotations

import math
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from align import ops
from align.losses import clipped_surrogate
from align.objectives.objective import Objective
from align.transforms import group_advantage, mask_truncated


def dapo(
    *,
    std: ops.Std = "population",
    eps: Annotated[float, Ge(0)] = 0.0,
    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2,
    clip_high: Annotated[float, Ge(0)] = 0.28,
    dual_clip: Annotated[float, Gt(1)] = math.inf,
) -> Objective:
    """GRPO with a higher upper clip, a mean over tokens, and truncated responses masked.

    Its dynamic sampling is `sampling: {dynamic_sampling: {rounds: 4}}`, its overlong penalty the reward
    `rewards.length:soft_overlong`.

    Paper: DAPO, arXiv 2503.14476.
    Limit: clip_high = clip_low and nothing truncated is GRPO.
    """
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, denominator="selected")
    return Objective("dapo", chain=(group_advantage(std=std, eps=eps), mask_truncated()), losses=(loss,))
