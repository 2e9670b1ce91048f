"""What must hold for every objective around GRPO: padding, row order, micro-batches, degenerate groups."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import batch_of, loss_of, no_model, widen, widened
from support.policy_family import FAMILY, family_batch

from align.credit import assign
from align.losses import Current

every_one = pytest.mark.parametrize("name", FAMILY)
few = settings(max_examples=10)


@every_one
@few
@given(seed=st.integers(0, 10_000))
def test_padding_and_masked_slots_change_nothing(name, seed):
    batch, logprob = family_batch(seed)
    loss, gradient = loss_of(FAMILY[name](), batch, logprob)
    wide = widened(batch, 3, math.nan)
    wide_loss, wide_gradient = loss_of(FAMILY[name](), wide, widen(logprob, batch.mask, 3, math.nan))
    torch.testing.assert_close(wide_loss, loss)
    torch.testing.assert_close(wide_gradient[:, : logprob.shape[1]], gradient)
    assert not wide_gradient[~wide.mask].any()


@pytest.mark.parametrize("name", [name for name in FAMILY if name != "composed"])  # shortest-k has ties in length
@few
@given(seed=st.integers(0, 10_000), order=st.permutations(range(12)))
def test_the_order_of_rows_changes_nothing(name, seed, order):
    batch, logprob = family_batch(seed)
    loss, gradient = loss_of(FAMILY[name](), batch, logprob)
    index = torch.tensor(order)
    moved_loss, moved = loss_of(FAMILY[name](), batch.rows(index), logprob[index])
    torch.testing.assert_close(moved_loss, loss)
    torch.testing.assert_close(moved, gradient[index])


@every_one
@few
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 11))
def test_micro_batches_add_up(name, seed, cut):
    batch, logprob = family_batch(seed)
    loss, gradient = loss_of(FAMILY[name](), batch, logprob)
    credited = assign(FAMILY[name](), batch, no_model)
    parts, slopes = [], []
    for rows in (torch.arange(cut), torch.arange(cut, 12)):
        part = logprob[rows].clone().requires_grad_()
        share = sum(term.contribution(Current(part), credited.batch.rows(rows), rows) for term in credited.terms)
        parts.append(share.detach())
        slopes.append(torch.autograd.grad(share, part)[0])
    torch.testing.assert_close(sum(parts), loss)
    torch.testing.assert_close(torch.cat(slopes), gradient)


@every_one
@few
@given(seed=st.integers(0, 10_000))
def test_tokens_that_are_not_live_need_no_log_probability(name, seed):
    """The learner computes live tokens only and leaves 0 elsewhere."""
    batch, logprob = family_batch(seed)
    trained = assign(FAMILY[name](), batch, no_model).trained
    for a, b in zip(
        loss_of(FAMILY[name](), batch, logprob),
        loss_of(FAMILY[name](), batch, torch.where(trained, logprob, 0.0)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@every_one
@pytest.mark.parametrize("rewards", [[1.0] * 4, [0.0] * 4, [1.0, 0, 0, 0]])
@pytest.mark.parametrize("lengths", [[0, 0, 0, 0], [1, 1, 1, 1], [3, 0, 1, 2]])
def test_degenerate_groups_are_finite(name, rewards, lengths):
    batch = batch_of([0] * 4, lengths, rewards=rewards)
    shape = batch.mask.shape
    batch = replace(
        batch,
        correct=batch.reward > 0,
        truncated=torch.zeros(4, dtype=torch.bool),
        entropy=torch.zeros(shape, dtype=torch.float64),
        old_logprob=torch.full(shape, -1.0, dtype=torch.float64),
    )
    loss, gradient = loss_of(FAMILY[name](), batch, torch.full(shape, -0.5, dtype=torch.float64))
    assert loss.isfinite() and gradient.isfinite().all()
