"""TGDPO: arXiv 2506.14574."""

from __future__ import annotations

import math
from typing import Annotated

from annotated_types import Ge

from align.losses import pair_logistic_guided
from align.losses.pairs import Beta
from align.objectives.objective import Objective


def tgdpo(
    *,
    beta: Beta = 0.1,
    alpha: Annotated[float, Ge(0)] = 0.5,
    guide_beta: Beta | None = None,
    floor: float = -math.inf,
) -> Objective:
    """DPO whose tokens count by a frozen guide: more where it agrees with the label, less where it does not.

    The guide is `model: {guide: ...}`, usually this base trained with DPO. The official code has one beta for both;
    `guide_beta` defaults to it. The sum of z over both orders of a pair depends on the guide and not on the label,
    so the loss falls faster with larger alpha whether or not preferences are fitted: read `margin` and `accuracy`,
    which are DPO's.

    Paper: TGDPO, arXiv 2506.14574.
    Limit: alpha 0, or the reference as guide, is DPO, bit for bit.
    """
    loss = pair_logistic_guided(beta=beta, alpha=alpha, guide_beta=guide_beta, floor=floor)
    return Objective("tgdpo", (), (loss,))
