"""TDPO: Token-level Direct Preference Optimization, arXiv 2404.11999.

    log_ratio = sum over tokens of (logprob - ref_logprob)                          of a response
    kl = sum over tokens of KL(reference || policy), over the whole vocabulary
    loss = -log sigmoid(beta * (log_ratio[chosen] - log_ratio[rejected] - alpha * (kl[rejected] - kl[chosen])))

TDPO1 has alpha = 1. TDPO2 has stop_gradient(kl[chosen]) in place of kl[chosen].
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from align.batch import Batch
from align.losses.loss import Current, Loss
from align.losses.pairs import kl_by_side, log_ratio, pair_loss, smoothed
from align.objectives.objective import Objective
from align.ranges import Beta, Coef


def pair_logistic_kl(
    *,
    beta: Beta = 0.1,
    alpha: Coef = 1.0,
    chosen_kl: Literal["differentiated", "detached"] = "differentiated",
) -> Loss:
    """DPO's loss with a margin in KL(reference || policy), the rejected response's less the chosen one's.

    TDPO (arXiv 2404.11999): the KL is that of the whole vocabulary. alpha 1 is TDPO1; TDPO2 has alpha 0.5 and
    `chosen_kl: detached`, no gradient through the chosen response's KL.
    """

    def score(current: Current, batch: Batch) -> Tensor:
        kl = torch.where(batch.active, current.ref_kl, 0.0).sum(1)
        if chosen_kl == "detached":
            kl = torch.where(batch.chosen, kl.detach(), kl)
        return beta * (log_ratio(current, batch).sum(1) + alpha * kl)

    return pair_loss(
        "pair_logistic_kl",
        score,
        smoothed(0.0, "conservative"),
        beta,
        kl_by_side,
        needs=("chosen", "ref_logprob"),
        reads_current=("ref_kl",),
    )


def tdpo1(*, beta: Beta = 0.1) -> Objective:
    """DPO whose margin also asks for less forward KL on the rejected response than on the chosen one.

    The KL is that of the reference to the policy over the whole vocabulary, summed over tokens.

    Paper: TDPO, arXiv 2404.11999.
    Limit: sparsepo with both masks at 1; policy = reference gives ln 2.
    """
    return Objective("tdpo1", (), (pair_logistic_kl(beta=beta),))


def tdpo2(*, beta: Beta = 0.1, alpha: Coef = 0.5) -> Objective:
    """TDPO1 with the KL term weighted by alpha and no gradient through the chosen response's KL.

    Paper: TDPO, arXiv 2404.11999.
    Limit: alpha 0 is DPO; alpha 1 has TDPO1's value, with another gradient.
    """
    return Objective("tdpo2", (), (pair_logistic_kl(beta=beta, alpha=alpha, chosen_kl="detached"),))
