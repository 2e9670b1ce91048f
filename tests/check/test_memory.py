"""The estimate of memory."""

import pytest
import torch
from support import tiny_model
from support.broken.corpus import facts

from align.check import memory, model_files
from align.config.model_keys import Adapter
from align.model.adapters import add_adapter
from align.model.load import load_model
from align.model.recompute import recompute_layers

TOLERANCE = {"dense": 0.02, "mixture": 0.15}  # experts are counted in bfloat16


MODELS = {"dense": tiny_model.save_model, "mixture": tiny_model.save_mixture}


@pytest.mark.parametrize(
    "kind, adapter, again",
    [("dense", None, False), ("dense", Adapter(rank=2), False), ("mixture", None, False), ("dense", None, True)],
)
def test_the_activations_are_those_that_torch_keeps(tmp_path, kind, adapter, again):
    model = load_model(str(MODELS[kind](tmp_path)), "float32")
    skeleton = model_files.skeleton(model.config, "tiny")
    if adapter:
        model, skeleton = (add_adapter(m, adapter, "tiny") for m in (model, skeleton))
    if again:
        recompute_layers(model)
    decoder, kept = (model.get_base_model() if adapter else model).get_decoder(), {}
    own = {p.untyped_storage().data_ptr() for p in decoder.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids = torch.zeros(1, memory.PROBE, dtype=torch.int64)
        out = decoder(input_ids=ids, position_ids=torch.arange(memory.PROBE)[None], use_cache=False)
    real = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own) / memory.PROBE
    estimate = memory.kept_per_token(skeleton)
    if again:  # only what stands outside of the layers is known to torch here
        assert real < 0.25 * estimate
    else:
        assert out.last_hidden_state.requires_grad and real == pytest.approx(estimate, rel=TOLERANCE[kind])


def test_layers_that_are_computed_again_keep_what_they_get(bench):
    kept = facts(bench)["memory_gib"]["activations"]
    bench.put("optim.checkpoint_activations", True)
    assert facts(bench)["memory_gib"]["activations"] < 0.75 * kept  # of two layers, one is whole at a time


def test_a_base_in_4_bits_is_estimated_as_it_is_stored(bench, monkeypatch):
    monkeypatch.setattr("align.check.defaults.why_not", lambda: None)
    bench.put("model.adapter", {"rank": 2})
    whole = facts(bench)["memory_gib"]["weights"]
    bench.put("model.quantize", "4bit")
    assert 0.1 * whole < facts(bench)["memory_gib"]["weights"] < 0.3 * whole


def test_zero_divides_the_estimate(bench):
    one, two, three = (facts(bench, processes=2, stage=stage)["memory_gib"] for stage in (0, 2, 3))
    assert two["weights"] == one["weights"] == pytest.approx(2 * three["weights"], abs=1e-3)
    assert one["activations"] == two["activations"]
