"""CISPO: MiniMax-M1, arXiv 2506.13585."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt

from align import ops
from align.losses import weighted_logprob
from align.objectives.objective import Objective
from align.transforms import group_advantage


def cispo(
    *,
    std: ops.Std = "population",
    eps: Annotated[float, Ge(0)] = 0.0,
    ratio_low: Annotated[float, Ge(0)] = 0.0,
    ratio_high: Annotated[float, Gt(0)] = 5.0,
) -> Objective:
    """REINFORCE weighted by a bounded ratio without gradient: no token is clipped away.

    Paper: CISPO, arXiv 2506.13585 eq. 4.
    Limit: on-policy its gradient is GRPO's.
    """
    loss = weighted_logprob(ratio_low=ratio_low, ratio_high=ratio_high)
    return Objective("cispo", chain=(group_advantage(std=std, eps=eps),), losses=(loss,))
