"""SparsePO and MaPO: arXiv 2410.05102."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge

from align.losses import mask_l1, pair_logistic_masked
from align.losses.pairs import Beta
from align.objectives.objective import Objective

Coef = Annotated[float, Ge(0)]


def sparsepo(
    *,
    beta: Beta = 0.1,
    masks: Literal["common", "independent"] = "common",
    l1_reward: Coef = 0.0,
    l1_kl: Coef = 0.0,
    init: Literal["one", "official"] = "one",
    mask_weight_decay: Coef = 0.01,
) -> Objective:
    """TDPO1 with a learned weight for each token's log-ratio and for its KL: which tokens may move, and how far.

    The masks read the reference's hidden states and are trained with the policy. `common` is one mask for both,
    whose two L1 coefficients are halved as in the official code. `init: official` starts at a small mask, which
    may be dead; `one` near TDPO1. A mask of c everywhere is beta times c: compare runs at equal mean(mask) beta.
    The official `mask_dropout` has no effect in its code and is not here.

    Paper: SparsePO, arXiv 2410.05102.
    Limit: masks (1, 0) are DPO and (1, 1) TDPO1.
    """
    share = 0.5 if masks == "common" else 1.0
    loss = pair_logistic_masked(beta=beta, masks=masks, init=init, mask_weight_decay=mask_weight_decay)
    return Objective("sparsepo", (), (loss, mask_l1(reward=share * l1_reward, kl=share * l1_kl)))


def mapo(*, beta: Beta = 0.1) -> Objective:
    """SparsePO with masks from the reference's activations instead of learned ones.

    Each activation's mean over features, spread over [0, 1] within a response, averaged over the model: no
    parameters and no gradient through the mask.

    Paper: MaPO in SparsePO, arXiv 2410.05102.
    Limit: a mask of 1 everywhere is TDPO1.
    """
    return Objective("mapo", (), (pair_logistic_masked(beta=beta, masks="activations"),))
