"""IPO: arXiv 2310.12036."""

from __future__ import annotations

from typing import Literal

from align.losses.pairs import Beta, pair_squared
from align.objectives.objective import Objective


def ipo(*, beta: Beta = 0.1, form: Literal["mean", "sum"] = "mean") -> Objective:
    """The squared distance of the difference in log-ratios to 1 / (2 beta): a margin that can be overshot.

    `form: mean` averages over each response's tokens as TRL does, `sum` is the paper's equation as printed.

    Paper: IPO, arXiv 2310.12036.
    Limit: policy = reference gives 1 / (4 beta^2); `sum` at BoNBoN's beta is bonbon with alpha 0.
    """
    return Objective("ipo", (), (pair_squared(beta=beta, form=form),))
