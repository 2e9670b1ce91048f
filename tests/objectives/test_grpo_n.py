"""GRPO-N: a value by hand, and the limit where it is half of GRPO."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from support.batches import batch_of, loss_of, no_model, random_batch
from support.compare import close
from support.draws import few, seeds

from align.credit import assign
from align.losses import clipped_surrogate
from align.objectives import Objective, grpo, grpo_n
from align.transforms import sign_filter


def test_only_responses_below_the_mean_have_credit():
    """One response of four is right: its advantage would be sqrt(3), the others have -1 / sqrt(3)."""
    batch = batch_of([0] * 4, [2] * 4, rewards=[1.0, 0, 0, 0])
    batch = replace(batch, old_logprob=torch.zeros_like(batch.weight))
    loss, gradient = loss_of(grpo_n(), batch, batch.old_logprob)
    assert float(loss) == pytest.approx(3**0.5 / 4, rel=1e-12)
    assert not gradient[0].any()
    close(gradient[1:], torch.full((3, 2), 3**-0.5 / 8, dtype=torch.float64))


@few
@given(seed=seeds)
def test_together_with_its_positive_half_it_is_grpo(seed):
    batch, logprob = random_batch(seed)
    positive = replace(grpo(), chain=(*grpo().chain, sign_filter(sign="positive")))
    halves = [loss_of(objective, batch, logprob) for objective in (grpo_n(), positive)]
    for negative, positive, whole in zip(*halves, loss_of(grpo(), batch, logprob), strict=True):
        close(negative + positive, whole)


@few
@given(seed=seeds)
def test_the_selected_denominator_counts_what_is_below_the_mean_alone(seed):
    batch, logprob = random_batch(seed)
    below = assign(grpo(), batch, no_model).batch.advantage < 0
    full, gradient = loss_of(grpo_n(), batch, logprob)
    selected, larger = loss_of(grpo_n(denominator="selected"), batch, logprob)
    ratio = int(batch.mask.sum()) / max(int(below.sum()), 1)
    close(selected, full * ratio)
    close(larger, gradient * ratio)


@few
@given(seed=seeds)
def test_a_chain_with_the_filter_counts_the_rows_of_its_sign(seed):
    """Also where the mean is one of rows, and for the other sign."""
    batch, logprob = random_batch(seed)
    loss = clipped_surrogate(denominator="selected", aggregation="seq-mean-token-mean")
    positive = Objective("p", (*grpo().chain, sign_filter(sign="positive")), (loss,))
    (term,) = assign(positive, batch, no_model).terms
    advantage = assign(grpo(), batch, no_model).batch.advantage
    assert term.token_weights.count == int((advantage > 0).any(1).sum())
    assert not (term.token_weights.weight * (advantage <= 0)).any()


def test_nothing_of_the_sign_is_a_loss_of_0():
    batch = batch_of([0, 0], [2, 2], rewards=[1.0, 1.0])
    batch = replace(batch, old_logprob=torch.zeros_like(batch.weight))
    loss, gradient = loss_of(grpo_n(denominator="selected"), batch, batch.old_logprob)
    assert loss == 0 and not gradient.any()
