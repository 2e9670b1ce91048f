"""SimPO: Simple Preference Optimization with a Reference-Free Reward, arXiv 2405.14734.

score = mean over tokens of logprob                                             of a response
loss = -log sigmoid(beta * (score[chosen] - score[rejected] - gamma_beta_ratio))                       (eq. 6)
"""

from __future__ import annotations

import torch
from torch import Tensor

from align.batch import Batch
from align.losses.loss import Current, Loss
from align.losses.pairs import mean_over_tokens, pair_loss, smoothed
from align.objectives.objective import Objective
from align.ranges import Beta, Margin, Smoothing


def pair_logistic_mean(*, beta: Beta = 2.0, gamma_beta_ratio: Margin = 0.5, label_smoothing: Smoothing = 0.0) -> Loss:
    """Logistic loss of the difference in mean log-probability less a margin: SimPO (arXiv 2405.14734 eq. 6).

    Reads no reference. `gamma_beta_ratio` is the paper's gamma / beta, in nats a token.
    """
    of_difference = smoothed(label_smoothing, "conservative")

    def score(current: Current, batch: Batch) -> Tensor:
        return beta * mean_over_tokens(torch.where(batch.active, current.logprob, 0.0), batch)

    return pair_loss(
        "pair_logistic_mean", score, lambda z: of_difference(z - beta * gamma_beta_ratio), beta, needs=("chosen",)
    )


def simpo(*, beta: Beta = 2.0, gamma_beta_ratio: Margin = 0.5, label_smoothing: Smoothing = 0.0) -> Objective:
    """The logistic loss of the difference in mean log-probability less a margin; there is no reference.

    The learning rate is what it is sensitive to (the authors use 3e-7 to 1e-6 on whole models).

    Paper: SimPO, arXiv 2405.14734.
    Limit: on responses of one length, gamma 0 is DPO with a uniform reference and beta / length.
    """
    loss = pair_logistic_mean(beta=beta, gamma_beta_ratio=gamma_beta_ratio, label_smoothing=label_smoothing)
    return Objective("simpo", (), (loss,))
