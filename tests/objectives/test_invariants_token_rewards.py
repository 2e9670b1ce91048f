"""What must hold for PPO and RTO: whitening, padding, dropped rows, row order, micro-batches."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.batches import batch_of, no_model, result_of, widen, widened
from support.draws import few, seeds
from support.token_rewards import OBJECTIVES, UNWHITENED, close, drawn

from align.credit import assign
from align.losses import Current

every_objective = pytest.mark.parametrize("name", OBJECTIVES)


@every_objective
@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [0, 2], [0, 0], [3, 0, 1]])
def test_short_and_empty_responses_stay_finite(name, lengths):
    """One token has no variance, and no token no mean."""
    batch = batch_of([0] * len(lengths), lengths, rewards=[1.0] * len(lengths))
    half = torch.full_like(batch.weight, -0.5)
    fields = dict.fromkeys(("old_logprob", "ref_logprob", "guide_logprob", "value"), half)
    batch = replace(batch, token_text=[["a"] * n for n in lengths], **fields)
    loss, gradients, _ = result_of(OBJECTIVES[name], batch, logprob=half - 0.1, value=half + 0.04)
    credited = assign(OBJECTIVES[name], batch, no_model).batch
    assert loss.isfinite() and credited.advantage.isfinite().all() and credited.returns.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["value"].any() == any(lengths)
    if sum(lengths) == 1 and name not in UNWHITENED:
        assert not credited.advantage.any()


@every_objective
def test_equal_advantages_are_whitened_to_0(name):
    batch = batch_of([0] * 3, [1, 1, 1], rewards=[0.7] * 3)
    zeros = torch.zeros_like(batch.weight)
    fields = dict.fromkeys(("old_logprob", "ref_logprob", "guide_logprob", "value"), zeros)
    batch = replace(batch, token_text=[["a"]] * 3, **fields)
    advantage = assign(OBJECTIVES[name], batch, no_model).batch.advantage
    assert advantage.abs().max() < 1e-6 if name not in UNWHITENED else (advantage == 0.7).all()


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in UNWHITENED])
@few
@given(seed=seeds)
def test_whitened_advantages_have_mean_0_and_variance_1_over_the_kept_tokens(name, seed):
    batch, _, _ = drawn(seed)
    batch = replace(batch, kept=batch.group != 1)
    credited = assign(OBJECTIVES[name], batch, no_model).batch
    taken = credited.advantage[batch.mask & batch.kept[:, None]]
    assert float(taken.mean()) == pytest.approx(0, abs=1e-12)
    assert float(taken.var(correction=int(name == "ppo other"))) == pytest.approx(1)
    assert not credited.advantage[~batch.kept].any()


@every_objective
@few
@given(seed=seeds, by=st.integers(0, 3), fill=st.sampled_from([0.0, 1e30, -1e30, torch.inf, -torch.inf, torch.nan]))
def test_padding_and_what_stands_in_masked_slots_change_nothing(name, seed, by, fill):
    batch, logprob, value = drawn(seed)
    loss, gradients, metrics = result_of(OBJECTIVES[name], batch, logprob=logprob, value=value)
    wide = {field: widen(v, batch.mask, by, fill) for field, v in (("logprob", logprob), ("value", value))}
    wide_loss, wide_gradients, wide_metrics = result_of(OBJECTIVES[name], widened(batch, by, fill), **wide)
    close(wide_loss, loss)
    assert wide_metrics == pytest.approx(metrics, rel=1e-12)
    for field, gradient in gradients.items():
        found, T = wide_gradients[field], gradient.shape[1]
        close(found[:, :T], gradient)
        assert not found[:, T:].any() and not found[:, :T][~batch.mask].any()


@every_objective
@few
@given(seed=seeds, fill=st.sampled_from([1e30, torch.nan]))
def test_dropped_rows_change_neither_credit_nor_the_loss_of_the_value(name, seed, fill):
    """Dropped by a transform before: the whitening, too, is that of the kept rows. Both losses count all rows."""
    batch, logprob, value = drawn(seed)
    rows = (batch.group != 1).nonzero()[:, 0]
    alone = assign(OBJECTIVES[name], batch.rows(rows), no_model)
    dropped = (batch.group == 1)[:, None]
    garbage = {
        field: getattr(batch, field).masked_fill(dropped, fill)
        for field in ("old_logprob", "ref_logprob", "guide_logprob", "value")
    }
    found = assign(OBJECTIVES[name], replace(batch, kept=batch.group != 1, **garbage), no_model)
    close(found.batch.advantage[rows], alone.batch.advantage)
    close(found.batch.returns[rows], alone.batch.returns)
    current = Current(logprob.masked_fill(dropped, fill), value=value.masked_fill(dropped, fill))
    shares = [term.contribution(current, found.batch) for term in found.terms]
    expected = [term.contribution(Current(logprob[rows], value=value[rows]), alone.batch) for term in alone.terms]
    count = found.terms[0].token_weights.count / alone.terms[0].token_weights.count
    close(shares[0] * count, expected[0])
    close(shares[1] * count, expected[1])


@every_objective
@few
@given(seed=seeds, rng=st.randoms(use_true_random=False))
def test_permuting_rows_permutes_credit_and_gradient(name, seed, rng):
    batch, logprob, value = drawn(seed)
    loss, gradients, _ = result_of(OBJECTIVES[name], batch, logprob=logprob, value=value)
    order = torch.tensor(rng.sample(range(12), 12))
    found = result_of(OBJECTIVES[name], batch.rows(order), logprob=logprob[order], value=value[order])
    close(found[0], loss)
    for field, gradient in gradients.items():
        close(found[1][field], gradient[order])


@every_objective
@few
@given(seed=seeds, rng=st.randoms(use_true_random=False))
def test_micro_batches_sum_to_the_whole(name, seed, rng):
    batch, logprob, value = drawn(seed)
    loss, gradients, _ = result_of(OBJECTIVES[name], batch, logprob=logprob, value=value)
    credited = assign(OBJECTIVES[name], batch, no_model)
    order, total = rng.sample(range(12), 12), 0.0
    for start, end in itertools.pairwise([0, 4, 5, 12]):
        rows = torch.tensor(order[start:end])
        leaves = [field[rows].requires_grad_() for field in (logprob, value)]
        current, part = Current(leaves[0], value=leaves[1]), credited.batch.rows(rows)
        share = sum(term.contribution(current, part, rows) for term in credited.terms)
        for gradient, whole in zip(torch.autograd.grad(share, leaves), gradients.values(), strict=True):
            close(gradient, whole[rows])
        total += float(share.detach())
    assert total == pytest.approx(float(loss), rel=1e-12)


@every_objective
def test_each_loss_trains_its_own_part(name):
    """The policy's loss not the head, the head's loss not the policy's log-probabilities."""
    batch, logprob, value = drawn(7)
    for i, trained in enumerate(("logprob", "value")):
        alone = replace(OBJECTIVES[name], losses=OBJECTIVES[name].losses[i : i + 1])
        _, gradients, _ = result_of(alone, batch, logprob=logprob, value=value)
        assert [field for field, gradient in gradients.items() if gradient.any()] == [trained]
