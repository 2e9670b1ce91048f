"""BoNBoN: arXiv 2406.00832."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from annotated_types import Ge, Le

from align.losses.loss import Loss
from align.losses.pairs import chosen_nll, pair_logistic, pair_squared
from align.objectives.objective import Objective


def best_of_n_beta(n: int) -> float:
    """beta_n = 1 / (2 (n - 1) sum_{k<n} 1/k), at which IPO's target is the mean log-ratio of best and worst of n.

    BoNBoN (arXiv 2406.00832). Raises `ValueError` for n < 2.
    """
    if n < 2:
        raise ValueError(f"the best and the worst of n = {n} are no pair; n must be at least 2")
    return 1 / (2 * (n - 1) * sum(1 / k for k in range(1, n)))


def best_of_n(
    *,
    n: Annotated[int, Ge(2)],
    alpha: Annotated[float, Ge(0), Le(1)] = 0.005,
    variant: Literal["paper", "code"] = "paper",
) -> Loss:
    """(1 - alpha) (sum lr_w - sum lr_l - (n - 1) H_{n-1})^2: BoNBoN's IPO term (arXiv 2406.00832).

    `variant: code` is what the released code computes instead: (1 - alpha) times DPO's loss at beta_n. Rows are the
    best and the worst of n responses of the reference. The likelihood term is `chosen_nll` with coef alpha.
    """
    beta = best_of_n_beta(n)
    base = pair_squared(beta=beta, form="sum") if variant == "paper" else pair_logistic(beta=beta)

    def check(group_size: int) -> None:
        if group_size != n:
            raise ValueError(f"n = {n}, and a group has {group_size}: the best and the worst are those of the group")

    return replace(base, name="best_of_n", coef=1 - alpha, check=check)


def bonbon(
    *,
    n: Annotated[int, Ge(2)],
    alpha: Annotated[float, Ge(0), Le(1)] = 0.005,
    variant: Literal["paper", "code"] = "paper",
) -> Objective:
    """Best-of-n into the weights: the likelihood of the best of n responses, and IPO against the worst with the
    beta that n implies.

    Online: `add: [{best_and_worst: {}}]` with `sampling.group_size` n. Both terms are sums over tokens, around 300 at
    the start for n = 8: clip gradients. `variant: code` is what the released code computes, DPO's loss in place of IPO.

    Paper: BoNBoN, arXiv 2406.00832.
    Limit: alpha 1 is sft (`form: sum`), alpha 0 is ipo (`form: sum`) at the implied beta.
    """
    return Objective("bonbon", (), (best_of_n(n=n, alpha=alpha, variant=variant), chosen_nll(coef=alpha)))
