"""REINFORCE: a value by hand, and the limit where it is W-REINFORCE."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from support.batches import batch_of, loss_of, random_batch
from support.compare import close, matrix
from support.draws import few, seeds

from align.objectives import reinforce, w_reinforce


@pytest.fixture
def batch():
    batch = batch_of([0, 0], [3, 1], rewards=[2.0, -1.0])
    return replace(batch, old_logprob=torch.zeros_like(batch.weight))


def test_every_token_has_the_reward_as_its_credit(batch):
    loss, gradient = loss_of(reinforce(), batch, batch.old_logprob)
    assert float(loss) == pytest.approx(-(3 * 2 - 1) / 4, rel=1e-15)
    close(gradient, matrix([-2, -2, -2], [1, 0, 0]) / 4)  # the paper's: -reward * grad(logprob), mean over tokens


def test_beyond_the_clip_the_loss_is_flat(batch):
    """Ratios of the first response are 1.5, 1 and 0.5, that of the second is 0.5."""
    logprob = matrix([1.5, 1, 0.5], [0.5, 1, 1]).log()
    loss, gradient = loss_of(reinforce(), batch, logprob)
    assert float(loss) == pytest.approx(-(2 * (1.2 + 1 + 0.5) - 0.8) / 4, rel=1e-12)
    close(gradient, matrix([0, -2, -1], [0, 0, 0]) / 4)


@few
@given(seed=seeds)
def test_rewards_of_1_and_minus_1_are_w_reinforce_with_positive_weight_1(seed):
    batch, logprob = random_batch(seed)
    correct = batch.reward > 1
    batch = replace(batch, correct=correct, reward=torch.where(correct, 1.0, -1.0).double())
    for found, golden in zip(
        loss_of(reinforce(), batch, logprob), loss_of(w_reinforce(positive_weight=1), batch, logprob), strict=True
    ):
        close(found, golden)
