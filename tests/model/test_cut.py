"""The support that top-p, top-k and min-p leave, and the policy over it."""

import math

import pytest
import torch
from support.policy_rows import rows, said
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from align.model import layouts
from align.model.cut import Cut
from align.model.policy import Policy

torch.manual_seed(0)
LOGITS = 3 * torch.randn(50, 40)
CUTS = [
    Cut(top_p=0.9),
    Cut(top_p=0.05),
    Cut(top_k=7),
    Cut(top_k=1),
    Cut(top_k=400),
    Cut(min_p=0.05),
    Cut(top_p=0.8, top_k=9, min_p=0.01),
    Cut(top_p=0.95, min_p=0.2),
]


def naive(row, cut):
    """Token after token, in plain Python: min-p, then top-k, then top-p."""
    left = [t for t in range(len(row)) if math.exp(row[t] - max(row)) >= cut.min_p]
    left = sorted(left, key=lambda t: -row[t])[: cut.top_k or None]
    probs = [math.exp(row[t] - max(row)) for t in left]
    before = [sum(probs[:i]) / sum(probs) for i in range(len(left))]
    return {t for t, mass in zip(left, before, strict=True) if mass < cut.top_p}


@pytest.mark.parametrize("few", [5, 1024])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_the_support_is_the_naive_one(cut, few, monkeypatch):
    monkeypatch.setattr("align.model.cut.FEW", few)
    inside = cut.inside(LOGITS)
    for row, found in zip(LOGITS.double().tolist(), inside, strict=True):
        assert set(found.nonzero()[:, 0].tolist()) == naive(row, cut)
    assert torch.equal(cut.inside(LOGITS[7]), inside[7]) and torch.equal(cut.inside(LOGITS[None]), inside[None])
    assert cut.inside(LOGITS[:0]).shape == (0, 40)
    assert inside.any(-1).all() and inside.gather(-1, LOGITS.argmax(-1)[:, None]).all()


@pytest.mark.parametrize(
    "cut, warper", [(CUTS[0], TopPLogitsWarper(0.9)), (CUTS[2], TopKLogitsWarper(7)), (CUTS[5], MinPLogitsWarper(0.05))]
)
def test_one_alone_is_that_of_transformers(cut, warper):
    assert torch.equal(cut.inside(LOGITS), warper(None, LOGITS.clone()).isfinite())


def test_tokens_as_likely_as_the_last_of_top_k_are_all_inside():
    assert Cut(top_k=2).inside(torch.tensor([3.0, 1.0, 1.0, 0.0])).tolist() == [True, True, True, False]


def test_what_was_sampled_is_inside_and_nothing_else_changes():
    sampled = LOGITS.argmin(-1)
    found = Cut(top_k=3).logits(LOGITS, sampled)
    assert (found.isfinite().sum(-1) == 4).all() and torch.equal(
        found.gather(-1, sampled[:, None])[:, 0], LOGITS.amin(-1)
    )
    assert Cut().logits(LOGITS, sampled) is LOGITS and not Cut().cuts and Cut(min_p=0.1).cuts


def read(model, cut, quantities, layout=layouts.padded, chunk=7):
    batch = rows()
    inputs = layout.inputs(batch, batch.mask)
    found = Policy(model, 0.7, cut=cut)(inputs, quantities, chunk=chunk)
    return {name: inputs.scatter(value, batch.mask.shape) for name, value in found.items()}, batch


@pytest.mark.parametrize("layout", [layouts.padded, layouts.shared_prefix], ids=lambda layout: layout.name)
def test_a_cut_that_leaves_all_changes_no_bit(model, layout):
    plain = said(model, ("logprob", "entropy"), layout, chunk=7)
    for cut in (Cut(top_p=1.0, top_k=0, min_p=0.0), Cut(top_k=10_000)):
        found, _ = read(model, cut, ("logprob", "entropy"), layout)
        assert all(torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize("trained", [True, False], ids=["head trained", "head frozen"])
@pytest.mark.parametrize("cut", [CUTS[0], CUTS[2], CUTS[6]], ids=str)
def test_values_and_gradients_are_those_of_the_distribution_over_the_support(model, cut, trained):
    head = model.get_output_embeddings()
    ends = {id(p) for p in head.parameters()}
    weights = [p for p in model.parameters() if id(p) not in ends]
    head.requires_grad_(trained)
    found, batch = read(model, cut, ("logprob",))
    gradients = torch.autograd.grad(found["logprob"].sin().sum(), weights)
    head.requires_grad_(True)
    total, whole = 0.0, read(model, cut, ("whole_logprob",))[0]["whole_logprob"]
    for i, prompt in enumerate(batch.prompt_ids):
        ids = [*prompt, *batch.response_ids[i][batch.mask[i]].tolist()]
        logits = model(torch.tensor([ids])).logits[0] / 0.7
        for t, token in enumerate(ids[len(prompt) :]):
            row = logits[len(prompt) + t - 1]
            support = sorted(naive(row.tolist(), cut) | {token})
            expected = row[token] - row[support].logsumexp(-1)
            torch.testing.assert_close(found["logprob"][i, t], expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(whole[i, t], row.log_softmax(-1)[token], rtol=1e-4, atol=1e-4)
            total = total + expected.sin()
    for one, two in zip(gradients, torch.autograd.grad(total, weights), strict=True):
        assert (one - two).norm() < 1e-4 * two.norm().clamp(min=1e-3)
