"""What the wrapped model says: chunks, scalings of the head, the vocabulary's KL."""

import pytest
import torch
from support.policy_rows import rows, said
from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM

from align.model import layouts
from align.model.policy import Policy

SIZE = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)


def other_model(model):
    other = type(model)(model.config).eval()
    with torch.no_grad():
        for own, given in zip(other.parameters(), model.parameters(), strict=True):
            own.copy_(given + 0.02 * torch.randn(given.shape, generator=torch.Generator().manual_seed(1)))
    return other


@pytest.mark.parametrize("layout", [layouts.padded, layouts.shared_prefix], ids=lambda layout: layout.name)
def test_chunks_change_neither_values_nor_gradients(model, layout):
    quantities, found = ("logprob", "entropy", "ref_kl"), []
    for chunks in (1, 50):  # more than there are positions: some are empty
        values = said(model, quantities, layout, other_model(model), chunks=chunks)
        total = sum((value * (1 + i)).sum() for i, value in enumerate(values.values()))
        found.append((values, torch.autograd.grad(total, list(model.parameters()))))
    for name in quantities:
        torch.testing.assert_close(found[0][0][name], found[1][0][name])
    for one, two in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_a_head_that_is_not_trained_gives_the_same_gradients(model):
    """Then slopes are found in the forward pass; the embeddings are tied, and leave the graph with the head."""
    quantities, found = ("logprob", "entropy", "ref_kl"), []
    ends = {id(p) for p in model.get_output_embeddings().parameters()}
    inside = [p for p in model.parameters() if id(p) not in ends]
    for trained in (True, False):
        model.get_output_embeddings().requires_grad_(trained)
        values = said(model, quantities, layouts.shared_prefix, other_model(model), chunks=3)
        total = sum((value.sin() * (1 + i)).sum() for i, value in enumerate(values.values()))
        found.append((values, torch.autograd.grad(total, inside)))
    model.get_output_embeddings().requires_grad_(True)
    for name in quantities:
        assert torch.equal(found[0][0][name], found[1][0][name])
    for one, two in zip(found[0][1], found[1][1], strict=True):
        assert (one - two).norm() < 1e-5 * one.norm()


def test_plain_log_probabilities_are_those_at_temperature_1(model):
    found, batch = said(model, ("plain_logprob", "logprob")), rows()
    for i, prompt in enumerate(batch.prompt_ids):
        ids = batch.response_ids[i, : int(batch.length[i])].tolist()
        steps = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = steps.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(found["plain_logprob"][i, : len(ids)], expected, rtol=1e-4, atol=1e-5)
    assert (found["plain_logprob"] - found["logprob"]).abs().max() > 0.01


def test_the_kl_is_from_the_reference_to_the_policy(model):
    other, batch = other_model(model), rows()
    found = said(model, ("ref_kl",), reference=other)["ref_kl"]
    for i, prompt in enumerate(batch.prompt_ids):
        ids = batch.response_ids[i, : int(batch.length[i])].tolist()
        at = slice(len(prompt) - 1, len(prompt) - 1 + len(ids))
        p, q = ((m(torch.tensor([[*prompt, *ids]])).logits[0, at] / 0.7).log_softmax(-1) for m in (model, other))
        forward, reverse = (q.exp() * (q - p)).sum(-1), (p.exp() * (p - q)).sum(-1)
        torch.testing.assert_close(found[i, : len(ids)], forward, rtol=1e-4, atol=1e-5)
        assert (found[i, : len(ids)] - reverse).abs().max() > 1e-3
    assert (found >= 0).all() and not said(model, ("ref_kl",), reference=model)["ref_kl"].abs().gt(1e-5).any()


@pytest.mark.parametrize(
    "config, kind",
    [
        (GraniteConfig(**SIZE, logits_scaling=3.0, embedding_multiplier=2.0), GraniteForCausalLM),
        (CohereConfig(**SIZE, logit_scale=0.25), CohereForCausalLM),
    ],
    ids=["granite", "cohere"],
)
def test_scaled_logits_are_those_of_the_model(config, kind):
    torch.manual_seed(0)
    model = kind(config).eval()
    batch = rows()
    found = said(model, ("logprob",), batch=batch)["logprob"]
    for i, prompt in enumerate(batch.prompt_ids):
        ids = batch.response_ids[i, : int(batch.length[i])]
        logits = model(torch.tensor([[*prompt, *ids.tolist()]])).logits[0, len(prompt) - 1 : -1].float() / 0.7
        expected = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
        torch.testing.assert_close(found[i, : len(ids)], expected, rtol=1e-4, atol=1e-5)


def test_a_head_that_makes_logits_otherwise_is_noticed(model):
    batch = rows()
    inputs = layouts.padded.inputs(batch, batch.mask)
    assert Policy(model, 0.7)(inputs, ("head_gap",))["head_gap"] < 1e-4
    model.config.logits_scaling = 2.0  # which this kind of model does not look at
    try:
        assert Policy(model, 0.7)(inputs, ("head_gap",))["head_gap"] > 0.1
    finally:
        del model.config.logits_scaling
