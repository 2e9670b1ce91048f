"""BoNBoN: BoNBoN Alignment for Large Language Models and the Sweetness of Best-of-n Sampling, arXiv 2406.00832.

    beta = 1 / (2 * (n - 1) * sum over k < n of 1 / k)
    log_ratio = sum over tokens of (logprob - ref_logprob)                          of a response
    loss = -alpha * sum(logprob[chosen]) + (1 - alpha) * (log_ratio[chosen] - log_ratio[rejected] - 1 / (2 * beta))^2

chosen is the best and rejected the worst of n responses of the reference.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from align.losses.loss import Loss
from align.losses.pairs import chosen_nll, pair_logistic, pair_squared
from align.objectives.objective import Objective
from align.ranges import Mixture, Several

Variant = Literal["paper", "code"]


def best_of_n_beta(n: int) -> float:
    """The beta at which IPO's target 1 / (2 beta) is the mean log-ratio of the best and the worst of n.

    BoNBoN (arXiv 2406.00832). Raises `ValueError` for n < 2.
    """
    if n < 2:
        raise ValueError(f"the best and the worst of n = {n} are no pair; n must be at least 2")
    return 1 / (2 * (n - 1) * sum(1 / k for k in range(1, n)))


def best_of_n(*, n: Several, alpha: Mixture = 0.005, variant: Variant = "paper") -> Loss:
    """(1 - alpha) times IPO's loss on sums over tokens, at the beta of n: BoNBoN (arXiv 2406.00832).

    `variant: code` is what the released code computes instead: (1 - alpha) times DPO's loss at that beta. Rows are the
    best and the worst of n responses of the reference. The likelihood term is `chosen_nll` with coef alpha.
    """
    beta = best_of_n_beta(n)
    base = pair_squared(beta=beta, form="sum") if variant == "paper" else pair_logistic(beta=beta)

    def check(group_size: int) -> None:
        if group_size != n:
            raise ValueError(f"n = {n}, and a group has {group_size}: the best and the worst are those of the group")

    return replace(base, name="best_of_n", coef=1 - alpha, check=check)


def bonbon(*, n: Several, alpha: Mixture = 0.005, variant: Variant = "paper") -> Objective:
    """Best-of-n sampling distilled: likelihood of the best of n responses, and IPO against the worst at n's beta.

    Online: `add: [{best_and_worst: {}}]` with `sampling.group_size` n. Both terms are sums over tokens, around 300 at
    the start for n = 8: clip gradients. `variant: code` is what the released code computes, DPO's loss in place of IPO.

    Paper: BoNBoN, arXiv 2406.00832.
    Limit: alpha 1 is sft (`form: sum`), alpha 0 is ipo (`form: sum`) at the implied beta.
    """
    return Objective("bonbon", (), (best_of_n(n=n, alpha=alpha, variant=variant), chosen_nll(coef=alpha)))
