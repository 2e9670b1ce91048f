"""NSR: what its two denominators count."""

from dataclasses import replace

import pytest
import torch
from support.batches import batch_of, loss_of

from align import objectives


def test_nsr_denominators():
    """6 wrong of 8 at ratio 1: 1.0 over the wrong ones, 0.75 over all."""
    batch = batch_of([0] * 8, [3] * 8, rewards=[1.0, 1, 0, 0, 0, 0, 0, 0])
    batch = replace(batch, correct=batch.reward > 0, old_logprob=torch.zeros_like(batch.weight))
    assert float(loss_of(objectives.nsr(), batch, batch.old_logprob)[0]) == pytest.approx(1.0)
    assert float(loss_of(objectives.nsr(denominator="full"), batch, batch.old_logprob)[0]) == pytest.approx(0.75)
