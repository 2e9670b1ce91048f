"""GFPO, Group Filtered Policy Optimization: arXiv 2508.09726."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from annotated_types import Ge, Lt

from align import ops
from align.losses import Aggregation, Denominator
from align.objectives.grpo import grpo
from align.objectives.objective import Objective
from align.transforms.adaptive import AdaptiveK
from align.transforms.keep import Metric, Rank, keep_top


def gfpo(
    *,
    k: Rank | AdaptiveK,
    metric: Metric = "shortest",
    std: ops.Std = "population",
    eps: Annotated[float, Ge(0)] = 0.0,
    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2,
    clip_high: Annotated[float, Ge(0)] = 0.2,
    aggregation: Aggregation = "token-mean",
    denominator: Denominator = "full",
) -> Objective:
    """Sample more, learn only from the k best of a group by length or reward a token: GRPO on what was kept.

    The paper's denominator counts all responses (`full`); TRL's removed trainer
    counted the kept ones (`selected`), a larger step. The paper adds `kl_policy_ref` and `entropy_bonus` with
    coef 0.001 over all rows; here one adds them by name.

    Paper: GFPO, arXiv 2508.09726.
    Limit: k = group_size is GRPO, bit for bit.
    """
    base = grpo(
        std=std, eps=eps, clip_low=clip_low, clip_high=clip_high, aggregation=aggregation, denominator=denominator
    )
    return replace(base, name="gfpo", chain=(keep_top(k=k, metric=metric), *base.chain))
