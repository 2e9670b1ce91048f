"""TGDPO: arXiv 2506.14574."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from align.batch import Batch
from align.losses.loss import Current, Loss
from align.losses.pairs import Beta, log_ratio, pair_loss, smoothed
from align.objectives.objective import Objective


def pair_logistic_guided(
    *,
    beta: Beta = 0.1,
    alpha: Annotated[float, Ge(0)] = 0.5,
    guide_beta: Beta | None = None,
    floor: float = -math.inf,
) -> Loss:
    """-log sigmoid(beta (sum f lr_w - sum f lr_l)), f = 1 + alpha r on chosen and 1 - alpha r on rejected tokens.

    TGDPO (arXiv 2506.14574). r = guide_beta (guide_logprob - ref_logprob); `guide_beta` is `beta` where it is not
    given. `floor` bounds f from below (the paper assumes f > 0 and does not enforce it; where f < 0 the gradient of
    the token turns round).
    """
    guide_beta = beta if guide_beta is None else guide_beta

    def factor(batch: Batch) -> Tensor:
        guide = batch.need("guide_logprob", "pair_logistic_guided")
        reward = guide_beta * torch.where(batch.active, guide - batch.need("ref_logprob", "the guide"), 0.0)
        return 1 + alpha * torch.where(batch.chosen[:, None], reward, -reward)

    def measure(current: Current, batch: Batch) -> dict[str, Tensor]:
        f = factor(batch)[batch.active]  # before the floor, which would hide how often it acts
        return {"factor": f, "factor_min": f, "factor_max": f, "factor_negative": f < 0}

    return pair_loss(
        "pair_logistic_guided",
        lambda current, batch: beta * (factor(batch).clamp(min=floor) * log_ratio(current, batch)).sum(1),
        smoothed(0.0, "conservative"),
        beta,
        measure,
        needs=("chosen", "ref_logprob", "guide_logprob"),
    )


def tgdpo(
    *,
    beta: Beta = 0.1,
    alpha: Annotated[float, Ge(0)] = 0.5,
    guide_beta: Beta | None = None,
    floor: float = -math.inf,
) -> Objective:
    """DPO whose tokens count by a frozen guide: more where it agrees with the label, less where it does not.

    The guide is `model: {guide: ...}`, usually this base trained with DPO. The official code has one beta for both;
    `guide_beta` defaults to it. The sum of z over both orders of a pair depends on the guide and not on the label,
    so the loss falls faster with larger alpha whether or not preferences are fitted: read `margin` and `accuracy`,
    which are DPO's.

    Paper: TGDPO, arXiv 2506.14574.
    Limit: alpha 0, or the reference as guide, is DPO, bit for bit.
    """
    loss = pair_logistic_guided(beta=beta, alpha=alpha, guide_beta=guide_beta, floor=floor)
    return Objective("tgdpo", (), (loss,))
