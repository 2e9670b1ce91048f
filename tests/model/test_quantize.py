"""A base in 4 bits below an adapter: what it computes, what goes to the sampler, what is refused.

bitsandbytes is an extra (`pip install 'align[quantize]'`); without it only the refusals are tested.
"""

import pytest
import torch
from support import ragged_batches, tiny_model
from support.paths import ROOT
from support.results import recorded

from align.config.model_keys import Adapter
from align.learner import weights
from align.model import layouts, quantize
from align.model.adapters import acting_as, add_adapter
from align.model.load import load_model
from align.model.locate import ModelError
from align.model.policy import Policy
from align.model.recompute import recompute_layers
from align.result.verify import verify

installed = pytest.mark.skipif(quantize.why_not() is not None, reason="bitsandbytes is not installed")
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(tiny_model.save_model(tmp_path_factory.mktemp("tiny")))


def quantized(base, **adapter):
    torch.manual_seed(0)
    model = add_adapter(load_model(base, "float32", "4bit"), Adapter(rank=4, **adapter), base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=generator)
    return model


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def loaded(base, given):
    """A whole model with these weights."""
    model = load_model(base, "float32")
    model.load_state_dict(dict(given))
    return model


def test_without_bitsandbytes_nothing_is_loaded(base, monkeypatch):
    monkeypatch.setattr("align.model.quantize.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="bitsandbytes is not installed; pip install 'align\\[quantize\\]'"):
        load_model(base, "float32", "4bit")


@installed
def test_the_sampler_s_weights_compute_what_the_quantised_model_does(base):
    model, plain = quantized(base, targets="attention"), load_model(base, "float32")
    with acting_as(model, "base"):
        alone = logits(model)
    assert (alone - logits(plain)).abs().max() > 0.1  # 4 bits do round
    torch.testing.assert_close(logits(loaded(base, weights.base(model))), alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits(loaded(base, weights.merged(model))), logits(model), rtol=0, atol=1e-4)


@installed
def test_only_the_adapter_learns_from_a_gradient_that_is_that_of_the_whole_weights(base):
    model, again = quantized(base), quantized(base)
    whole = add_adapter(loaded(base, weights.base(model)), Adapter(rank=4), base)
    whole.load_state_dict({name: p for name, p in model.named_parameters() if p.requires_grad}, strict=False)
    recompute_layers(again.get_base_model())
    kept, again, whole = (gradient(model) for model in (model, again, whole))
    assert torch.equal(kept, again)
    assert (kept - whole).norm() < 1e-4 * whole.norm()


def gradient(model):
    batch, policy = ragged_batches.batch(), Policy(model, 0.7)
    policy(layouts.shared_prefix.inputs(batch, batch.mask))["logprob"].sum().backward()
    trained = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    assert trained and all("lora_" in name for name in trained)
    return torch.cat([gradient.flatten() for gradient in trained.values()])


@installed
def test_even_micro_batches_count_weights_not_bytes(base):
    whole = add_adapter(load_model(base, "float32"), Adapter(rank=4), base)
    assert Policy(quantized(base), 1.0).quadratic == Policy(whole, 1.0).quadratic


@installed
def test_a_result_is_verified_over_the_base_in_4_bits(base, tmp_path, monkeypatch):
    out = recorded(base, tmp_path / "adapter", "adapter", quantize="4bit")
    checks = verify(str(out))
    assert all(check.passed for check in checks) and "base in 4bit" in checks[1].found
    monkeypatch.setattr("align.model.quantize.find_spec", lambda name: None)
    *_, last = verify(str(out))
    assert last.name == "log-probabilities" and "bitsandbytes is not installed" in last.found


def test_the_extra_is_named_in_the_project():
    assert "\nquantize = [" in (ROOT / "pyproject.toml").read_text()
