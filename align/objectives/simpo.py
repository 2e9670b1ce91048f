"""SimPO: arXiv 2405.14734."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge

from align.losses.loss import Loss
from align.losses.pairs import Beta, Smoothing, mean_over_tokens, pair_loss, smoothed
from align.objectives.objective import Objective


def pair_logistic_mean(
    *, beta: Beta = 2.0, gamma_beta_ratio: Annotated[float, Ge(0)] = 0.5, label_smoothing: Smoothing = 0.0
) -> Loss:
    """-log sigmoid(beta (mean logp_w - mean logp_l - gamma_beta_ratio)), no reference: SimPO (2405.14734 eq. 6)."""
    shape = smoothed(label_smoothing, "conservative")
    return pair_loss(
        "pair_logistic_mean",
        lambda current, batch: beta * mean_over_tokens(torch.where(batch.active, current.logprob, 0.0), batch),
        lambda z: shape(z - beta * gamma_beta_ratio),
        beta,
        needs=("chosen",),
    )


def simpo(
    *, beta: Beta = 2.0, gamma_beta_ratio: Annotated[float, Ge(0)] = 0.5, label_smoothing: Smoothing = 0.0
) -> Objective:
    """The logistic loss of the difference in mean log-probability less a margin; there is no reference.

    The learning rate is what it is sensitive to (the authors use 3e-7 to 1e-6 on whole models).

    Paper: SimPO, arXiv 2405.14734.
    Limit: on responses of one length, gamma 0 is DPO with a uniform reference and beta / length.
    """
    loss = pair_logistic_mean(beta=beta, gamma_beta_ratio=gamma_beta_ratio, label_smoothing=label_smoothing)
    return Objective("simpo", (), (loss,))
