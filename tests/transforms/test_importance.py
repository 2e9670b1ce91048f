"""Importance weights between sampler and trainer: golden values."""

import numpy as np
from support.batches import batch_of, loss_of
from support.goldens import NEW, OLD

from align.objectives import Objective, grpo
from align.transforms import Transform, importance_weight

TRAIN = [[-1, -0.5, -2], [-0.3, -4, -1]]
SAMPLER = [[-1.1, -0.9, -2], [-0.3, -2, -2.5]]


def weights(**args):
    batch = batch_of([0, 0], [3, 3], old_logprob=TRAIN, sampler_logprob=SAMPLER)
    return importance_weight(**args).apply(batch).weight.numpy()


def test_importance_weights():
    truncated = [[1.105170918, 1.491824698, 1], [1, 0.135335283, 2]]
    np.testing.assert_allclose(weights(high=2.0), truncated, atol=1e-9)
    np.testing.assert_allclose(weights(mode="mask", high=2.0)[1], [1, 0.135335283, 0], atol=1e-9)
    np.testing.assert_allclose(weights(mode="mask", high=2.0, low=0.5)[1], [1, 0, 0], atol=1e-9)
    sequence = weights(level="sequence", high=3.0)
    np.testing.assert_allclose(sequence, [[1.648721271] * 3, [0.60653066] * 3], atol=1e-9)  # the product, not its mean
    np.testing.assert_allclose(weights(level="sequence", mode="mask", high=1.5)[:, 0], [0, 0.60653066], atol=1e-9)


def test_importance_weights_are_one_where_sampler_and_trainer_agree():
    batch = batch_of([0, 0], [3, 2], rewards=[1.0, 0.0], old_logprob=OLD, sampler_logprob=OLD)
    transform: Transform = importance_weight()
    weighted = Objective("w", (*grpo().chain, transform), grpo().losses)
    assert loss_of(weighted, batch, NEW)[0] == loss_of(grpo(), batch, NEW)[0]
