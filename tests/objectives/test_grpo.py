"""Golden values A1 of the specification: two sequences, every published aggregation."""

import numpy as np
import oracle
import pytest
import torch
from helpers import batch_of, loss_of, random_batch
from hypothesis import given
from hypothesis import strategies as st

from align.losses import clipped_surrogate, entropy_bonus, kl_policy_ref
from align.losses.loss import Constant, TokensPerRow
from align.objectives import Objective, grpo
from align.transforms import Transform, importance_weight

OLD = [[-1, -0.5, -2], [-0.7, -1.2]]
NEW = torch.tensor([[-0.7, -0.6, -2.5], [-0.4, -1, 0]], dtype=torch.float64)
REF = [[-0.9, -0.6, -2.2], [-0.6, -1.1]]


def a1(loss, extra=()):
    """The loss of A1's two rows, whose advantages are 1 and -1."""
    batch = batch_of([0, 0], [3, 2], rewards=[1.0, -1.0], old_logprob=OLD, ref_logprob=REF)
    return float(loss_of(Objective("a1", grpo().chain, (loss, *extra)), batch, NEW)[0])


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


def test_clip_higher():
    assert a1(clipped_surrogate(clip_high=0.28)) == pytest.approx(-0.04402130240, abs=1e-10)
    higher = clipped_surrogate(clip_high=0.28, aggregation="seq-mean-token-mean")
    assert a1(higher) == pytest.approx(0.17758737848, abs=1e-10)
    swapped = clipped_surrogate(clip_low=0.28, clip_high=0.2)
    assert a1(swapped) != pytest.approx(-0.04402130240, abs=1e-6)


def test_kl_link_adds_the_golden_k3():
    plain = a1(clipped_surrogate())
    assert a1(clipped_surrogate(), [kl_policy_ref(coef=0.5)]) - plain == pytest.approx(0.5 * 0.01843154635, abs=1e-10)


def test_entropy_bonus_lowers_the_loss_by_the_mean_entropy():
    batch = batch_of([0, 0], [3, 2], rewards=[1.0, -1.0], old_logprob=OLD)
    entropy = torch.tensor([[1.0, 2, 3], [4, 5, 100]], dtype=torch.float64)
    plain = loss_of(grpo(), batch, NEW)[0]
    bonus = Objective("g", grpo().chain, (*grpo().losses, entropy_bonus(coef=0.1)))
    assert plain - loss_of(bonus, batch, NEW, entropy)[0] == pytest.approx(0.1 * 3.0)


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


# ---- importance weights (golden A1: TIS)

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
