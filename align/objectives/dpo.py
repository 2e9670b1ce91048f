"""DPO and IPO, on pairs with a reference; SFT on their chosen side, where most pipelines start."""

from __future__ import annotations

from typing import Literal

from align.losses import chosen_nll, pair_logistic, pair_squared
from align.losses.pairs import Beta, Smoothing
from align.objectives.objective import Objective


def dpo(
    *,
    beta: Beta = 0.1,
    label_smoothing: Smoothing = 0.0,
    smoothing: Literal["conservative", "robust"] = "conservative",
) -> Objective:
    """The logistic loss of the difference in log-ratios to the reference, chosen against rejected.

    `label_smoothing` is the share of pairs taken to be the wrong way round: `conservative` is cDPO, `robust` its
    unbiased form (arXiv 2403.00409), which TRL has.

    Paper: DPO, arXiv 2305.18290.
    Limit: it is the baseline of tgdpo, sparsepo, tdpo1 and tdpo2; policy = reference gives ln 2.
    """
    return Objective("dpo", (), (pair_logistic(beta=beta, label_smoothing=label_smoothing, smoothing=smoothing),))


def ipo(*, beta: Beta = 0.1, form: Literal["mean", "sum"] = "mean") -> Objective:
    """The squared distance of the difference in log-ratios to 1 / (2 beta): a margin that can be overshot.

    `form: mean` averages over each response's tokens as TRL does, `sum` is the paper's equation as printed.

    Paper: IPO, arXiv 2310.12036.
    Limit: policy = reference gives 1 / (4 beta^2); `sum` at BoNBoN's beta is bonbon with alpha 0.
    """
    return Objective("ipo", (), (pair_squared(beta=beta, form=form),))


def sft(*, form: Literal["sum", "mean"] = "mean") -> Objective:
    """The likelihood of the chosen responses, nothing else: the usual start of a preference run.

    `form`: each response counts by the mean over its tokens, or by their sum.

    Paper: InstructGPT, arXiv 2203.02155, its first stage.
    Limit: `sum` is bonbon with alpha 1.
    """
    return Objective("sft", (), (chosen_nll(form=form),))
