"""GSPO: arXiv 2507.18071."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Lt

from align import ops
from align.losses import Denominator, sequence_surrogate
from align.objectives.objective import Objective
from align.transforms import group_advantage


def gspo(
    *,
    std: ops.Std = "population",
    eps: Annotated[float, Ge(0)] = 0.0,
    form: Literal["sequence", "token"] = "sequence",
    clip_low: Annotated[float, Ge(0), Lt(1)] = 3e-4,
    clip_high: Annotated[float, Ge(0)] = 4e-4,
    denominator: Denominator = "full",
) -> Objective:
    """GRPO with one length-normalised ratio a response.

    `form: token` has the same value, and each token's gradient carries its own advantage: take it where links
    choose tokens or add credit to them.

    Paper: GSPO, arXiv 2507.18071.
    Limit: responses of one token are GRPO with seq-mean-token-mean.
    """
    loss = sequence_surrogate(form=form, clip_low=clip_low, clip_high=clip_high, denominator=denominator)
    return Objective("gspo", chain=(group_advantage(std=std, eps=eps),), losses=(loss,))
