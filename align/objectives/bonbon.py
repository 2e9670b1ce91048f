"""BoNBoN: arXiv 2406.00832."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le

from align.losses import best_of_n, chosen_nll
from align.objectives.objective import Objective


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
