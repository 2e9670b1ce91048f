"""Layers that are computed again: how often, what is kept, and what a pass without a gradient pays."""

import pytest
import torch
from support import ragged_batches
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from align.model import layouts
from align.model.load import load_model
from align.model.policy import Policy
from align.model.recompute import layers, recompute_layers


@pytest.fixture
def counted(folder):
    """(policy whose layers are computed again, calls of each MLP)."""
    policy, calls = Policy(load_model(str(folder), "float32"), 0.7), []
    for layer in layers(policy.causal):
        layer.mlp.register_forward_pre_hook(lambda module, *_: calls.append(module))
    recompute_layers(policy.causal)
    return policy, calls


def said(policy):
    batch = ragged_batches.batch()
    return policy(layouts.shared_prefix.inputs(batch, batch.mask))["logprob"]


def kept(policy):
    """Bytes kept for the backward pass, weights aside."""
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    found = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = said(policy).sum()
    del loss
    return sum(storage.nbytes() for storage in found.values())


def test_a_backward_pass_computes_each_layer_once_more(counted):
    policy, calls = counted
    loss = said(policy).sum()
    assert len(calls) == len(set(calls)) == 2
    loss.backward()
    assert sorted(map(id, calls[:2])) == sorted(map(id, calls[2:]))


@torch.no_grad()
def test_a_pass_without_a_gradient_stays_as_it_is(counted, monkeypatch):
    policy, calls = counted
    monkeypatch.setattr("align.model.recompute.checkpoint", pytest.fail)
    said(policy)
    assert len(calls) == 2


def test_less_is_kept(folder, counted):
    assert kept(counted[0]) < 0.5 * kept(Policy(load_model(str(folder), "float32"), 0.7))


def test_the_attention_of_the_pass_is_that_of_the_backward_pass_which_restores_it(counted):
    policy, _ = counted
    own = policy.config._attn_implementation
    loss = said(policy).sum()
    assert policy.config._attn_implementation == own != "packed"
    loss.backward()
    assert policy.config._attn_implementation == own


def test_dropout_stays_off(tmp_path):
    """transformers' own switch works in train mode alone, where this decoder drops a tenth."""
    tiny = dict(vocab_size=64, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2)
    OPTForCausalLM(OPTConfig(**tiny, dropout=0.1, word_embed_proj_dim=32)).save_pretrained(tmp_path)
    model, ids = load_model(str(tmp_path), "float32"), torch.arange(20)[None]
    before = model(ids).logits
    recompute_layers(model)
    assert layers(model) and torch.equal(model(ids).logits, before)
    assert not any(module.training for module in model.modules() if isinstance(module, nn.Module))
