"""MaPO: SparsePO's activation masks, arXiv 2410.05102."""

from __future__ import annotations

from align.losses.pairs import Beta
from align.objectives.objective import Objective
from align.objectives.sparsepo import pair_logistic_masked


def mapo(*, beta: Beta = 0.1) -> Objective:
    """SparsePO with masks from the reference's activations instead of learned ones.

    Each activation's mean over features, spread over [0, 1] within a response, averaged over the model: no
    parameters and no gradient through the mask.

    Paper: MaPO in SparsePO, arXiv 2410.05102.
    Limit: a mask of 1 everywhere is TDPO1.
    """
    return Objective("mapo", (), (pair_logistic_masked(beta=beta, masks="activations"),))
