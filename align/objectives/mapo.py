"""MaPO, from SparsePO: Controlling Preference Alignment of LLMs via Sparse Token Masks, arXiv 2410.05102.

    a = mean over the features of an activation of the reference                    at the prefix of each token
    stretched = (a - min(a)) / (max(a) - min(a))                                    over the tokens of a response
    reward_mask = kl_mask = mean of stretched over the activations of a kind, then over the kinds
    loss = SparsePO's, without its L1

The kinds are MLP, attention, residual stream and logits.
"""

from __future__ import annotations

from align.objectives.objective import Objective
from align.objectives.sparsepo import pair_logistic_masked
from align.ranges import Beta


def mapo(*, beta: Beta = 0.1) -> Objective:
    """SparsePO with masks from the reference's activations instead of learned ones.

    Each activation's mean over features, spread over [0, 1] within a response, averaged over the model: no
    parameters and no gradient through the mask. Which activations is the official code's choice for each architecture
    (`align/model/activations.py`), less queries and keys behind the rotary embedding; architectures whose layers have
    other names or parts are refused.

    Paper: MaPO in SparsePO, arXiv 2410.05102.
    Limit: a mask of 1 everywhere is TDPO1.
    """
    return Objective("mapo", (), (pair_logistic_masked(beta=beta, masks="activations"),))
