"""The estimate of memory."""

import pytest
import torch
from support import tiny_model
from support.broken.corpus import facts

from align.check import memory, model_files
from align.config.model_keys import Adapter
from align.model.adapters import add_adapter
from align.model.load import load_model


@pytest.mark.parametrize("adapter", [None, Adapter(rank=2)])
def test_the_activations_are_those_that_torch_keeps(tmp_path, adapter):
    model = load_model(str(tiny_model.save_model(tmp_path)), "float32")
    skeleton = model_files.skeleton(model.config, "tiny")
    if adapter:
        model, skeleton = (add_adapter(m, adapter, "tiny") for m in (model, skeleton))
    decoder, kept = (model.get_base_model() if adapter else model).get_decoder(), {}
    own = {p.untyped_storage().data_ptr() for p in decoder.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids = torch.zeros(1, memory.PROBE, dtype=torch.int64)
        out = decoder(input_ids=ids, position_ids=torch.arange(memory.PROBE)[None], use_cache=False)
    real = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own) / memory.PROBE
    assert out.last_hidden_state.requires_grad and real == pytest.approx(memory.kept_per_token(skeleton), rel=0.02)


def test_zero_divides_the_estimate(bench):
    one, two, three = (facts(bench, processes=2, stage=stage)["memory_gib"] for stage in (0, 2, 3))
    assert two["weights"] == one["weights"] == pytest.approx(2 * three["weights"], abs=1e-3)
    assert one["activations"] == two["activations"]
