"""TGDPO: Harnessing Token-Level Reward Guidance for Enhancing Direct Preference Optimization, arXiv 2506.14574.

    guide_reward = guide_beta * (guide_logprob - ref_logprob)                       of each token
    factor = 1 + alpha * guide_reward                                               in the chosen response
    factor = 1 - alpha * guide_reward                                               in the rejected one
    score = sum over tokens of max(factor, floor) * (logprob - ref_logprob)         of a response
    loss = -log sigmoid(beta * (score[chosen] - score[rejected]))

The paper has no `floor`: it assumes factor > 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from align.batch import Batch
from align.losses.loss import Current, Loss
from align.losses.pairs import log_ratio, pair_loss, smoothed
from align.objectives.objective import Objective
from align.ranges import Beta, Coef


def pair_logistic_guided(
    *, beta: Beta = 0.1, alpha: Coef = 0.5, guide_beta: Beta | None = None, floor: float = -math.inf
) -> Loss:
    """DPO's loss with a factor on each token's log-ratio, from a frozen guide: TGDPO (arXiv 2506.14574).

    `guide_beta` is `beta` where it is not given. `floor` bounds the factor from below: where it is negative the
    gradient of the token turns round, and the paper does not enforce that it is not.
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
    *, beta: Beta = 0.1, alpha: Coef = 0.5, guide_beta: Beta | None = None, floor: float = -math.inf
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
