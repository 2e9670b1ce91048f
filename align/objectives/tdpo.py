"""TDPO: arXiv 2404.11999."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge

from align.losses import pair_logistic_kl
from align.losses.pairs import Beta
from align.objectives.objective import Objective


def tdpo1(*, beta: Beta = 0.1) -> Objective:
    """DPO whose margin also asks for less forward KL on the rejected response than on the chosen one.

    The KL is that of the reference to the policy over the whole vocabulary, summed over tokens.

    Paper: TDPO, arXiv 2404.11999.
    Limit: sparsepo with both masks at 1; policy = reference gives ln 2.
    """
    return Objective("tdpo1", (), (pair_logistic_kl(beta=beta),))


def tdpo2(*, beta: Beta = 0.1, alpha: Annotated[float, Ge(0)] = 0.5) -> Objective:
    """TDPO1 with the KL term weighted by alpha and no gradient through the chosen response's KL.

    Paper: TDPO, arXiv 2404.11999.
    Limit: alpha 0 is DPO; alpha 1 has TDPO1's value, with another gradient.
    """
    return Objective("tdpo2", (), (pair_logistic_kl(beta=beta, alpha=alpha, chosen_kl="detached"),))
