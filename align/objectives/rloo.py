"""RLOO: arXiv 2402.14740; and REINFORCE without a baseline."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Lt

from align.losses import Aggregation, clipped_surrogate, sequence_surrogate
from align.objectives.objective import Objective
from align.transforms import leave_one_out_advantage, reward_advantage


def rloo(*, clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2, clip_high: Annotated[float, Ge(0)] = 0.2) -> Objective:
    """The other responses of the group as the baseline, and one ratio for the whole response (as TRL has it).

    Paper: RLOO, arXiv 2402.14740.
    Limit: its advantage is G / (G - 1) times Dr.GRPO's.
    """
    loss = sequence_surrogate(ratio="product", clip_low=clip_low, clip_high=clip_high)
    return Objective("rloo", chain=(leave_one_out_advantage(),), losses=(loss,))


def reinforce(
    *,
    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2,
    clip_high: Annotated[float, Ge(0)] = 0.2,
    aggregation: Aggregation = "token-mean",
) -> Objective:
    """The reward itself as every token's credit, without a baseline.

    Paper: REINFORCE, Williams 1992.
    Limit: rewards of +1 and -1 are w_reinforce with positive_weight 1.
    """
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, aggregation=aggregation)
    return Objective("reinforce", chain=(reward_advantage(),), losses=(loss,))
