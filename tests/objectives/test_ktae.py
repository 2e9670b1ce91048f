"""KTAE: golden values A4, Fisher's test against scipy, what a key counts, and the limit that is GRPO."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from scipy.stats import fisher_exact
from support.batches import loss_of, no_model, random_batch
from support.compare import close
from support.draws import few, seeds

from align import objectives
from align.batch import Batch
from align.credit import assign
from align.objectives import grpo
from align.objectives.ktae import fisher_two_sided, information_gain, key_tokens

KTAE = [[5, 1, 2, 2, 9], [5, 1, 3, 9], [5, 1, 2, 9], [5, 4, 2, 9], [5, 4, 4, 3, 9], [5, 1, 4, 9]]


def ktae_batch(correct=(1, 1, 1, 0, 0, 0), rows=KTAE, group=None):
    batch = Batch.of(group or [0] * len(rows), rows, dtype=torch.float64)
    right = torch.tensor(correct, dtype=torch.bool)
    return replace(batch, correct=right, reward=right.double(), advantage=torch.zeros_like(batch.weight))


def key(batch, **args):
    return key_tokens(**args).apply(batch).advantage


def test_ktae_golden_keys():
    got = key(ktae_batch())
    np.testing.assert_allclose(got[0], [0, 0.646911707, 0.056615039, 0.056615039, 0], atol=1e-9)
    np.testing.assert_allclose(got[4], [0, -1, -1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(key(ktae_batch(), combine="paper")[0, 1:3], [0.456055057, 0.056434152], atol=1e-9)
    table = key(ktae_batch(), combine="paper", fisher="table")
    np.testing.assert_allclose(table[0, 1:3], [0.478732371, 0.294913521], atol=1e-9)
    np.testing.assert_allclose(key(ktae_batch(), beta=2)[0, 1:3], [0.648521898, 0.075424012], atol=1e-9)


def test_ktae_golden_advantages():
    got = assign(objectives.ktae(), ktae_batch(), _with_old).batch.advantage
    np.testing.assert_allclose(got[0], [0.912869263, 1.559780969, 0.969484301, 0.969484301, 0.912869263], atol=1e-9)
    np.testing.assert_allclose(got[5, :4], [-0.912869263, -0.265957556, -1.912869263, -0.912869263], atol=1e-9)


def _with_old(batch, names, rows_B, reader):
    return replace(batch, old_logprob=torch.zeros_like(batch.weight)) if "old_logprob" in names else batch


def test_fisher_is_scipys_and_certainty_is_exact():
    """F = exp(-2p), and exactly 0 where p is 1: floats miss that in 20 of 25 cells at C = W = 8."""
    for C in range(1, 17):
        for W in range(1, 17):
            table = fisher_two_sided(C, W)
            for a in range(C + 1):
                for b in range(W + 1):
                    p = fisher_exact([[a, b], [C - a, W - b]]).pvalue
                    right = 0.0 if p > 1 - 1e-12 else math.exp(-2 * p)
                    assert float(table[a, b]) == pytest.approx(right, abs=1e-12), (C, W, a, b)
    assert float(information_gain(8, 8)[8, 4]) == pytest.approx(0.311278124, abs=1e-9)


def test_swapped_labels_negate_the_key_and_one_sided_groups_have_none():
    np.testing.assert_allclose(key(ktae_batch()), -key(ktae_batch((0, 0, 0, 1, 1, 1))), atol=1e-15)
    assert not key(ktae_batch((1,) * 6)).any() and not key(ktae_batch((0,) * 6)).any()


def test_keys_are_of_each_group_and_of_its_multiset():
    twice = ktae_batch((1, 1, 1, 0, 0, 0) * 2, [row for row in KTAE for _ in (0, 1)][::2] + KTAE, [0] * 6 + [1] * 6)
    got = key(twice)
    np.testing.assert_array_equal(got[:6], key(ktae_batch()))
    interleaved = twice.rows(torch.arange(12).view(2, 6).T.flatten())
    np.testing.assert_array_equal(key(interleaved), got[torch.arange(12).view(2, 6).T.flatten()])
    backwards = key(ktae_batch(rows=[row[::-1] for row in KTAE]))
    for i, row in enumerate(KTAE):
        np.testing.assert_array_equal(backwards[i, : len(row)].flip(0), got[i, : len(row)])


def test_keys_count_all_rows_and_go_to_kept_ones_but_not_to_special_tokens():
    batch = ktae_batch()
    some = replace(batch, kept=torch.tensor([1, 1, 0, 1, 1, 1]).bool(), special=batch.response_ids == 1)
    got, full = key(some), key(batch)
    assert not got[2].any() and not got[:, 1][batch.response_ids[:, 1] == 1].any()
    np.testing.assert_array_equal(got[0, 2:], full[0, 2:])
    np.testing.assert_array_equal(key(some, special="count")[0], full[0])


def test_min_count_and_rare_tokens():
    """A token seen once dominates; its size hangs on the length of all responses (golden)."""
    for tokens, golden in ((500, 0.9998921860), (5000, 0.4598947575)):
        rows = [[1] * (tokens // 8) for _ in range(16)]
        rows[0] = [2, *rows[0][1:]]
        rows[0] += [1] * (tokens - 8 * (tokens // 8))
        rows[8] += [1] * (tokens - 8 * (tokens // 8))
        batch = ktae_batch((1,) * 8 + (0,) * 8, rows)
        assert float(key(batch)[0, 0]) == pytest.approx(golden, abs=1e-8)
        assert float(key(batch, min_count=2)[0, 0]) == 0.0


def test_empty_responses_have_no_key_and_still_count():
    batch = ktae_batch((1, 0, 1, 0), [[5, 6], [6], [], []])
    assert key(batch).isfinite().all()


def test_ktae_without_weight_is_grpo():
    batch, logprob = random_batch(2)
    batch = replace(batch, correct=batch.reward > 1)
    base = grpo(std="sample", eps=1e-6, dual_clip=3.0)
    for a, b in zip(loss_of(objectives.ktae(weight=0), batch, logprob), loss_of(base, batch, logprob), strict=True):
        assert torch.equal(a, b)


def official_loss(old, new, advantage, mask, low, high, c):
    """The policy loss of the official code (`compute_policy_loss` of its verl), a mean over tokens."""
    ratio = torch.exp(new - old)
    plain, clipped = -advantage * ratio, -advantage * torch.clamp(ratio, 1 - low, 1 + high)
    above = torch.maximum(plain, clipped)
    loss = torch.where(advantage < 0, torch.min(-advantage * c, above), above)
    return (loss * mask).sum() / mask.sum()


SCRIPTS = {
    "run_qwen2.5_math_1.5b": ({}, (0.2, 0.2, 3.0)),
    "run_dapo_qwen2.5_1.5b": ({"clip_high": 0.28, "dual_clip": 10.0}, (0.2, 0.28, 10.0)),
    "run_dapo_qwen2.5_7b": ({"clip_high": 0.24, "dual_clip": 10.0}, (0.2, 0.24, 10.0)),
}


@pytest.mark.parametrize("script", SCRIPTS)
@few
@given(seed=seeds)
def test_value_and_gradient_are_those_of_the_official_scripts(script, seed):
    keys, (low, high, c) = SCRIPTS[script]
    batch, logprob = random_batch(seed)
    batch = replace(batch, correct=batch.reward > 1)
    logprob = batch.old_logprob + 12 * (logprob - batch.old_logprob)  # ratios from 0.03 to 36
    advantage = assign(objectives.ktae(**keys), batch, no_model).batch.advantage
    new = logprob.clone().requires_grad_()
    expected = official_loss(batch.old_logprob, new, advantage, batch.mask, low, high, c)
    loss, gradient = loss_of(objectives.ktae(**keys), batch, logprob)
    close(loss, expected.detach())
    close(gradient, torch.autograd.grad(expected, new)[0])


def test_a_negative_advantage_is_bounded_at_3_by_default():
    """The token 4 of a wrong response, at a ratio of 20."""
    batch = replace(ktae_batch(), old_logprob=torch.zeros(6, 5, dtype=torch.float64))
    logprob = torch.zeros_like(batch.old_logprob)
    logprob[4, 1] = math.log(20)
    advantage = assign(objectives.ktae(), batch, no_model).batch.advantage[4, 1]
    losses = [loss_of(objectives.ktae(dual_clip=c), batch, logprob) for c in (3.0, math.inf)]
    (bounded, gradient), (plain, whole) = losses
    assert float(plain - bounded) == pytest.approx(float(17 * -advantage / batch.mask.sum()))
    assert gradient[4, 1] == 0 and whole[4, 1] > 0
    assert torch.equal(loss_of(objectives.ktae(), batch, logprob)[1], gradient)
