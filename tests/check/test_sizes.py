"""What the estimate of memory depends on, read off models without weights."""

from dataclasses import replace

import pytest
import torch
from support import shapes, tiny_model
from support.broken.corpus import facts

from align.check import model_files, sizes
from align.check.memory import phases
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
        ids = torch.zeros(1, sizes.PROBE, dtype=torch.int64)
        out = decoder(input_ids=ids, position_ids=torch.arange(sizes.PROBE)[None], use_cache=False)
    real = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own) / sizes.PROBE
    estimate = sizes.kept_per_token(skeleton)
    if again:  # only what stands outside of the layers is known to torch here
        assert real < 0.25 * estimate
    else:
        assert out.last_hidden_state.requires_grad and real == pytest.approx(estimate, rel=TOLERANCE[kind])


def test_layers_that_are_computed_again_keep_what_they_get(bench):
    kept = facts(bench)["memory_gib"]["run"]["activations"]
    bench.put("optim.checkpoint_activations", True)
    assert facts(bench)["memory_gib"]["run"]["activations"] < 0.75 * kept  # of two layers, one is whole at a time


def test_a_base_in_4_bits_is_estimated_as_it_is_stored(bench, monkeypatch):
    seen = []
    monkeypatch.setattr("align.check.machine.why_not", lambda: None)
    monkeypatch.setattr("align.check.summary.phases", lambda setup: seen.append(setup) or {})
    bench.put("model.adapter", {"rank": 2})
    assert bench.checked()["ok"]
    bench.put("model.quantize", "4bit")
    assert bench.checked()["ok"]
    whole, quantised = (phases(replace(one, policy=shapes.policy("Qwen3-8B", True))) for one in seen)
    saved = (4 - (0.5 + (1 + 4 / 256) / 64)) * shapes.policy("Qwen3-8B", True).linear / 2**30  # of float32
    assert whole["run"]["weights"] - quantised["run"]["weights"] == pytest.approx(saved, abs=0.01)


def test_zero_divides_the_estimate(bench):
    one, two, three = (facts(bench, processes=2, stage=stage)["memory_gib"]["run"] for stage in (0, 2, 3))
    assert two["weights"] == one["weights"] == pytest.approx(2 * three["weights"], abs=1e-3)
    assert one["activations"] == two["activations"]


def qwen_by_hand(layers: int = 36, hidden: int = 4096, inner: int = 12_288, vocabulary: int = 151_936) -> int:
    """Parameters of Qwen3-8B: projections of 32 query and 8 key-value heads of 128, three of the feed-forward part,
    norms of layers and heads, and an embedding and a head of their own."""
    attention = 2 * hidden * 32 * 128 + 2 * hidden * 8 * 128 + 2 * 128
    return layers * (attention + 3 * hidden * inner + 2 * hidden) + hidden + 2 * vocabulary * hidden


def test_the_shapes_of_large_models_are_those_by_hand():
    found = shapes.policy("Qwen3-8B", False)
    assert found.base == found.trained == qwen_by_hand() == 8_190_735_360 and found.added == 0
    assert found.linear == 36 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12_288)
    assert found.head == found.largest == found.largest_trained == 151_936 * 4096
    assert found.cached == 2 * 36 * 8 * 128 * 2  # keys and values of 8 heads of 128 in 36 layers, 2 bytes each
    assert found.kept / 2**20 == pytest.approx(7.8, abs=0.1)  # MiB a token
    lora = shapes.policy("Qwen3-8B", True)
    outs = (4096, 1024, 1024, 12_288, 12_288)  # of q, k, v, gate, up, which take 4096 numbers
    pairs = [(4096, out) for out in outs] + [(4096, 4096), (12_288, 4096)]
    assert lora.trained == lora.added == 36 * 16 * sum(map(sum, pairs)) and lora.base == found.base
    assert lora.largest_trained == 16 * 12_288 and lora.linear == found.linear
    assert lora.kept / 2**20 == pytest.approx(6.9, abs=0.1)


def test_what_a_recipe_says_is_what_the_estimate_depends_on(bench, monkeypatch):
    from align.check import summary

    seen = []
    monkeypatch.setattr(summary, "phases", lambda setup: seen.append(setup) or {})
    bench.launch = {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"zero_stage": 3},
        "num_processes": 4,
        "use_cpu": False,
    }
    bench.put("model.adapter", {"rank": 4})
    bench.put("optim", {"lr": 0.01, "optimizer": "sgd", "checkpoint_activations": True, "micro_batch_tokens": 100})
    bench.put("optim.offload_optimizer", "cpu")
    bench.put("sampling.sleep", True)
    bench.put("sampling.tensor_parallel", 2)
    assert bench.checked()["ok"]
    [found] = seen
    assert (found.gpu_gib, found.processes, found.zero_stage, found.width, found.moments) == (80.0, 4, 3, 2, 0)
    assert found.checkpointed and found.offload == "cpu" and not found.quantised and found.frozen == 0
    assert found.sampler.sleeps and found.sampler.tensor_parallel == 2 and not found.sampler.merged
    assert found.sampler.cache is None and found.micro_batch == 100 and found.policy.trained == found.policy.added
