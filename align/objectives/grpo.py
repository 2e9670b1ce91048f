"""GRPO: DeepSeekMath, arXiv 2402.03300."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Lt

from align import ops
from align.losses import Aggregation, Denominator, clipped_surrogate
from align.objectives.objective import Objective
from align.transforms import group_advantage


def grpo(
    *,
    std: ops.Std = "population",
    eps: Annotated[float, Ge(0)] = 0.0,
    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2,
    clip_high: Annotated[float, Ge(0)] = 0.2,
    aggregation: Aggregation = "token-mean",
    denominator: Denominator = "full",
) -> Objective:
    """Every token of a response gets the response's reward, normalised within its group.

    The paper averages within a response first: `aggregation: seq-mean-token-mean`. It adds a KL term to the
    reference: `add: [{kl_policy_ref: {coef: 0.04}}]`.

    Paper: GRPO, arXiv 2402.03300.
    Limit: it is the baseline that most others here have as their limit.
    """
    return Objective(
        "grpo",
        chain=(group_advantage(std=std, eps=eps),),
        losses=(
            clipped_surrogate(clip_low=clip_low, clip_high=clip_high, aggregation=aggregation, denominator=denominator),
        ),
    )
