"""KTAE, Key-Token Advantage Estimation: arXiv 2505.16826."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from align import ops
from align.losses import Aggregation, clipped_surrogate
from align.objectives.objective import Objective
from align.transforms import group_advantage
from align.transforms.key_tokens import Combine, Fisher, key_tokens


def ktae(
    *,
    weight: Annotated[float, Ge(0)] = 1.0,
    fisher: Fisher = "two_sided",
    combine: Combine = "code",
    alpha: Annotated[float, Ge(0)] = 1.0,
    beta: Annotated[float, Ge(0)] = 1.0,
    gamma: Annotated[float, Ge(0)] = 1.0,
    top: Annotated[float, Gt(0)] = 1.0,
    min_count: Annotated[int, Ge(1)] = 1,
    special: Literal["zero", "count"] = "zero",
    std: ops.Std = "sample",
    eps: Annotated[float, Ge(0)] = 1e-6,
    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2,
    clip_high: Annotated[float, Ge(0)] = 0.2,
    aggregation: Aggregation = "token-mean",
) -> Objective:
    """GRPO plus a credit for each token by how it goes with correct answers in its group.

    The defaults are the official code's. On DAPO: `{name: dapo, add: [{key_tokens: {}}]}`. See `key_tokens`.

    Paper: KTAE, arXiv 2505.16826.
    Limit: key weight 0 is GRPO with the same std and eps.
    """
    keys = key_tokens(
        weight=weight,
        fisher=fisher,
        combine=combine,
        alpha=alpha,
        beta=beta,
        gamma=gamma,
        top=top,
        min_count=min_count,
        special=special,
    )
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, aggregation=aggregation)
    return Objective("ktae", chain=(group_advantage(std=std, eps=eps), keys), losses=(loss,))
