"""SimPO: the limit where it is DPO."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from support.batches import batch_of, random_pairs, result_of, widen
from support.compare import close
from support.draws import few, seeds

from align.objectives import dpo, simpo


@few
@given(seed=seeds, length=st.integers(1, 5))
def test_simpo_without_a_margin_is_dpo_with_a_uniform_reference(seed, length):
    batch, current = random_pairs(seed)
    batch = replace(batch_of(batch.group.tolist(), [length] * 6), chosen=batch.chosen)
    batch = replace(batch, ref_logprob=torch.full_like(batch.weight, -3.0))
    logprob = widen(current["logprob"], torch.ones(6, current["logprob"].shape[1]).bool(), 5, -1.0)[:, :length]
    loss, gradients, _ = result_of(simpo(beta=2, gamma_beta_ratio=0), batch, logprob=logprob)
    expected = result_of(dpo(beta=2 / length), batch, logprob=logprob)
    close(loss, expected[0])
    close(gradients["logprob"], expected[1]["logprob"])
