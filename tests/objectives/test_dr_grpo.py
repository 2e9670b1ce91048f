"""Dr.GRPO: a value by hand, and the settings of GRPO that are the same."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from support.batches import batch_of, loss_of, random_batch
from support.compare import close, matrix, same
from support.draws import few, seeds

from align.losses.loss import TokensPerRow
from align.objectives import dr_grpo, grpo


def test_neither_the_std_nor_the_length_of_a_response_divides():
    """Advantages are 1.5 and -1.5 whatever the std, and every token counts 1 / (2 responses * 4 tokens)."""
    batch = batch_of([0, 0], [3, 1], rewards=[3.0, 0.0])
    batch = replace(batch, old_logprob=torch.zeros_like(batch.weight))
    loss, gradient = loss_of(dr_grpo(tokens_per_row=4), batch, batch.old_logprob)
    assert float(loss) == pytest.approx(-(3 * 1.5 - 1 * 1.5) / 8, rel=1e-15)
    close(gradient, matrix([-1.5, -1.5, -1.5], [1.5, 0, 0]) / 8)


@few
@given(seed=seeds)
def test_it_is_grpo_without_std_and_with_its_aggregation_bit_for_bit(seed):
    batch, logprob = random_batch(seed)
    other = grpo(std="none", aggregation=TokensPerRow(tokens_per_row=6))
    for found, golden in zip(
        loss_of(dr_grpo(tokens_per_row=6), batch, logprob), loss_of(other, batch, logprob), strict=True
    ):
        same(found, golden)


@few
@given(seed=seeds)
def test_the_loss_is_inverse_to_the_divisor(seed):
    batch, logprob = random_batch(seed)
    for one, six in zip(*(loss_of(dr_grpo(tokens_per_row=n), batch, logprob) for n in (1, 6)), strict=True):
        close(one, 6 * six)
