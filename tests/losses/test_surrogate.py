"""The clipped surrogate: golden values of its clips."""

import math

import pytest
import torch
from support.batches import batch_of, loss_of
from support.goldens import a1

from align.losses import clipped_surrogate
from align.objectives import Objective, grpo


def test_clip_higher():
    assert a1(clipped_surrogate(clip_high=0.28)) == pytest.approx(-0.04402130240, abs=1e-10)
    higher = clipped_surrogate(clip_high=0.28, aggregation="seq-mean-token-mean")
    assert a1(higher) == pytest.approx(0.17758737848, abs=1e-10)
    swapped = clipped_surrogate(clip_low=0.28, clip_high=0.2)
    assert a1(swapped) != pytest.approx(-0.04402130240, abs=1e-6)


def test_dual_clip_golden():
    batch = batch_of([0, 0], [1, 1], rewards=[1.0, -1.0], old_logprob=[[0.0], [-math.log(5)]])
    new = torch.zeros(2, 1, dtype=torch.float64)
    plain = Objective("p", grpo().chain, (clipped_surrogate(aggregation="seq-mean-token-sum"),))
    dual = Objective("d", grpo().chain, (clipped_surrogate(dual_clip=3, aggregation="seq-mean-token-sum"),))
    assert float(loss_of(plain, batch, new)[0]) == pytest.approx((-1 + 5) / 2)
    loss, gradient = loss_of(dual, batch, new)
    assert float(loss) == pytest.approx((-1 + 3) / 2) and gradient[1, 0] == 0 and gradient[0, 0] != 0
