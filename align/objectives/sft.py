"""SFT, supervised fine-tuning: Training Language Models to Follow Instructions with Human Feedback, arXiv 2203.02155.

loss = -mean over tokens of logprob[chosen]                     of a response; their sum with `form: sum`
"""

from __future__ import annotations

from typing import Literal

from align.losses.pairs import chosen_nll
from align.objectives.objective import Objective


def sft(*, form: Literal["sum", "mean"] = "mean") -> Objective:
    """The likelihood of the chosen responses, nothing else: the usual start of a preference run.

    `form`: each response counts by the mean over its tokens, or by their sum.

    Paper: InstructGPT, arXiv 2203.02155, its first stage.
    Limit: `sum` is bonbon with alpha 1.
    """
    return Objective("sft", (), (chosen_nll(form=form),))
