"""IPO: A General Theoretical Paradigm to Understand Learning from Human Preferences, arXiv 2310.12036.

log_ratio = mean over tokens of (logprob - ref_logprob)         of a response; their sum with `form: sum`
loss = (log_ratio[chosen] - log_ratio[rejected] - 1 / (2 * beta))^2                                    (eq. 17)
"""

from __future__ import annotations

from typing import Literal

from align.losses.pairs import pair_squared
from align.objectives.objective import Objective
from align.ranges import Beta


def ipo(*, beta: Beta = 0.1, form: Literal["mean", "sum"] = "mean") -> Objective:
    """The squared distance of the difference in log-ratios to 1 / (2 beta): a margin that can be overshot.

    `form: mean` averages over each response's tokens as TRL does, `sum` is the paper's equation as printed.

    Paper: IPO, arXiv 2310.12036.
    Limit: policy = reference gives 1 / (4 beta^2); `sum` at BoNBoN's beta is bonbon with alpha 0.
    """
    return Objective("ipo", (), (pair_squared(beta=beta, form=form),))
