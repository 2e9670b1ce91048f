"""DPO: its two kinds of label smoothing."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.batches import random_pairs, result_of
from support.compare import same
from support.draws import few, seeds

from align.objectives import dpo


@few
@given(seed=seeds, smoothing=st.sampled_from(["conservative", "robust"]))
def test_no_label_smoothing_is_the_plain_loss(seed, smoothing):
    batch, current = random_pairs(seed)
    loss, gradients, _ = result_of(dpo(beta=0.8), batch, logprob=current["logprob"])
    found = result_of(dpo(beta=0.8, smoothing=smoothing, label_smoothing=0), batch, logprob=current["logprob"])
    same(found[0], loss)
    same(found[1]["logprob"], gradients["logprob"])


@few
@given(seed=seeds, wrong=st.floats(0.01, 0.4))
def test_robust_smoothing_is_unbiased_under_swapped_labels(seed, wrong):
    """Its mean over right and wrong labels is the loss of the right ones (arXiv 2403.00409)."""
    batch, current = random_pairs(seed)
    swapped = replace(batch, chosen=~batch.chosen)
    robust = dpo(beta=0.8, label_smoothing=wrong, smoothing="robust")
    right, turned = (float(result_of(robust, b, logprob=current["logprob"])[0]) for b in (batch, swapped))
    plain = float(result_of(dpo(beta=0.8), batch, logprob=current["logprob"])[0])
    assert (1 - wrong) * right + wrong * turned == pytest.approx(plain, rel=1e-9)
