"""SimPO: arXiv 2405.14734."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge

from align.losses import pair_logistic_mean
from align.losses.pairs import Beta, Smoothing
from align.objectives.objective import Objective


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
