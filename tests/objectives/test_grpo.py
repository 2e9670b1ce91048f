"""GRPO: golden values A1 with every published aggregation, the oracle, finite differences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import oracle
from support.batches import loss_of, random_batch
from support.goldens import a1

from align.losses import clipped_surrogate
from align.losses.loss import Constant, TokensPerRow
from align.objectives import grpo


@pytest.mark.parametrize(
    "aggregation, golden",
    [
        ("token-mean", -0.02802130240),
        ("seq-mean-token-mean", 0.19092071181),
        ("seq-mean-token-sum", -0.07005325601),
        (TokensPerRow(tokens_per_row=4), -0.01751331400),
        (Constant(constant=4), -0.03502662800),
    ],
)
def test_aggregations(aggregation, golden):
    assert a1(clipped_surrogate(aggregation=aggregation)) == pytest.approx(golden, abs=1e-10)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
@given(seed=st.integers(0, 10_000), low=st.sampled_from([0.1, 0.2]), high=st.sampled_from([0.2, 0.28]))
def test_loss_is_the_oracle(mode, seed, low, high):
    batch, logprob = random_batch(seed)
    loss, _ = loss_of(grpo(clip_low=low, clip_high=high, aggregation=mode), batch, logprob)
    losses = []
    for group in range(3):
        rows = range(4 * group, 4 * group + 4)
        advantages = oracle.group_norm([float(batch.reward[i]) for i in rows])
        for i, advantage in zip(rows, advantages, strict=True):
            tokens = range(int(batch.length[i]))
            pairs = [(float(logprob[i, t]), float(batch.old_logprob[i, t])) for t in tokens]
            losses.append([oracle.surrogate(new, old, advantage, low, high) for new, old in pairs])
    assert float(loss) == pytest.approx(oracle.aggregate(losses, [True] * 12, mode), abs=1e-12)


def test_gradient_is_that_of_finite_differences():
    batch, logprob = random_batch(3)
    _, gradient = loss_of(grpo(), batch, logprob)
    step = 1e-6
    numeric = torch.zeros_like(logprob)
    for i, t in batch.mask.nonzero().tolist():
        up, down = logprob.clone(), logprob.clone()
        up[i, t] += step
        down[i, t] -= step
        numeric[i, t] = (loss_of(grpo(), batch, up)[0] - loss_of(grpo(), batch, down)[0]) / (2 * step)
    torch.testing.assert_close(gradient, numeric, atol=1e-8, rtol=1e-6)
    assert gradient.abs().sum() > 0


def test_on_policy_the_ratio_is_one_and_keeps_its_gradient():
    batch, _ = random_batch(1)
    loss, gradient = loss_of(grpo(), batch, batch.old_logprob)
    advantage = torch.tensor([a for g in range(3) for a in oracle.group_norm(batch.reward[4 * g : 4 * g + 4].tolist())])
    expected = -(advantage[:, None] * batch.mask) / batch.mask.sum()
    torch.testing.assert_close(gradient, expected.double())
    assert loss == pytest.approx(float(expected.sum()))
