"""DPO: Direct Preference Optimization: Your Language Model is Secretly a Reward Model, arXiv 2305.18290.

log_ratio = sum over tokens of (logprob - ref_logprob)                          of a response
loss = -log sigmoid(beta * (log_ratio[chosen] - log_ratio[rejected]))                                  (eq. 7)
"""

from __future__ import annotations

from align.losses.pairs import pair_logistic
from align.objectives.objective import Objective
from align.ranges import Beta, LabelSmoothing, Smoothing


def dpo(*, beta: Beta = 0.1, label_smoothing: Smoothing = 0.0, smoothing: LabelSmoothing = "conservative") -> Objective:
    """The logistic loss of the difference in log-ratios to the reference, chosen against rejected.

    `label_smoothing` is the share of pairs taken to be the wrong way round: `conservative` is cDPO, `robust` its
    unbiased form (arXiv 2403.00409), which TRL has.

    Paper: DPO, arXiv 2305.18290.
    Limit: it is the baseline of tgdpo, sparsepo, tdpo1 and tdpo2; policy = reference gives ln 2.
    """
    return Objective("dpo", (), (pair_logistic(beta=beta, label_smoothing=label_smoothing, smoothing=smoothing),))
