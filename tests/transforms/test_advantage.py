"""Advantages of outcomes and of one sign: golden values A6."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.batches import batch_of, no_model

from align.credit import assign
from align.objectives import grpo
from align.transforms import group_advantage, outcome_advantage, sign_filter


def test_negative_goldens():
    batch = batch_of([0] * 4, [1] * 4, rewards=[1.0, 0, 0, 1])
    n = sign_filter(sign="negative").apply(group_advantage(std="sample", eps=1e-6).apply(batch))
    np.testing.assert_allclose(n.advantage[:, 0], [0, -0.866023904, -0.866023904, 0], atol=1e-9)
    w = outcome_advantage(correct=0.1).apply(replace(batch, correct=torch.tensor([1, 1, 0, 0]).bool()))
    np.testing.assert_allclose(w.advantage[:, 0], [0.1, 0.1, -1, -1])


@pytest.mark.parametrize("std", ["population", "sample", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_seven_copies_of_a_reward_earn_exactly_nothing(std, dtype):
    """In float32 their mean is 0.6999999, and dividing the rest by itself would give 1 to each."""
    batch = batch_of([0] * 7, [2] * 7, rewards=[0.7] * 7, dtype=dtype)
    assert not assign(grpo(std=std), replace(batch, old_logprob=batch.weight), no_model).batch.advantage.any()
