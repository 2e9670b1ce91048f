"""D3S, Dynamic Dual-level Down-Sampling: arXiv 2509.22115."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Lt

from align import ops
from align.losses import Aggregation, Denominator, clipped_surrogate
from align.objectives.objective import Objective
from align.transforms import group_advantage
from align.transforms.downsample import Count, CountSchedule, Share, ShareSchedule, max_variance_rows, top_tokens


def d3s(
    *,
    rows: Count | CountSchedule,
    share: Share | ShareSchedule,
    row_scope: Literal["batch", "group"] = "batch",
    token_scope: Literal["batch", "response"] = "batch",
    std: ops.Std = "population",
    eps: Annotated[float, Ge(0)] = 0.0,
    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2,
    clip_high: Annotated[float, Ge(0)] = 0.2,
    aggregation: Aggregation = "token-mean",
    denominator: Denominator = "selected",
) -> Objective:
    """The rows of most advantage variance, and of them the tokens of most |A| times entropy.

    The paper's numbers were not at hand, so `rows` (of each group) and `share` (of tokens) have no default; a
    reconstructed start is a quarter of the group growing to all of it, and 0.2 growing to 1. On GSPO: `{name:
    gspo, form: token, denominator: selected, add: [{max_variance_rows: {...}}, {top_tokens: {...}}]}`. Costs one
    pass without gradient over the rows that were kept, for their entropies.

    Paper: D3S, arXiv 2509.22115.
    Limit: rows = group_size and share = 1 is GRPO.
    """
    chain = (
        group_advantage(std=std, eps=eps),
        max_variance_rows(rows=rows, scope=row_scope),
        top_tokens(share=share, scope=token_scope),
    )
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, aggregation=aggregation, denominator=denominator)
    return Objective("d3s", chain=chain, losses=(loss,))
