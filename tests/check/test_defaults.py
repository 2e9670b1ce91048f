"""Defaults that depend on the model, the data or the machine."""

import pytest
from support.recipes import BASE
from transformers import LlamaConfig, Qwen3MoeConfig

from align.check.defaults import fill_defaults, fill_steps
from align.config.experiment import load_experiment
from align.config.launch import Launch
from align.config.recipe_file import ConfigError
from align.data.prompts import Prompt, Prompts
from align.system.hardware import Hardware

CPU, GPU, OLD_GPU = Hardware("cpu", 24), Hardware("cuda", 80), Hardware("cuda", 16, bfloat16=False)


SMALL = LlamaConfig(vocab_size=1000, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
LARGE = LlamaConfig(num_hidden_layers=5)  # 1.27B parameters
MIXTURE = Qwen3MoeConfig(
    vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_experts=4, moe_intermediate_size=32
)


def filled(tmp_path, hardware, *keys, config=SMALL, **launch):
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    experiment, chosen = fill_defaults(load_experiment(path, keys), config, Launch(hardware=hardware, **launch))
    return experiment.recipe, {f"{choice.section}.{choice.key}": choice.why for choice in chosen}


ADAPTER = "model.adapter={rank: 4}"


@pytest.mark.parametrize(
    "hardware, keys, dtype, sync",
    [
        (CPU, [], "float32", "merged"),
        (CPU, [ADAPTER], "float32", "merged"),
        (GPU, [], "bfloat16", "merged"),
        (GPU, [ADAPTER], "bfloat16", "adapter"),
        (GPU, [ADAPTER, "model.dtype=float32"], "float32", "merged"),
        (OLD_GPU, [ADAPTER], "float32", "merged"),
        (CPU, [ADAPTER, "sampling.sync=adapter"], "float32", "adapter"),
    ],
)
def test_precision_and_sync_are_chosen_by_device(tmp_path, hardware, keys, dtype, sync):
    recipe, why = filled(tmp_path, hardware, *keys)
    assert (recipe.model.dtype, recipe.sampling.sync) == (dtype, sync)
    assert ("model.dtype" in why) is ("model.dtype=float32" not in keys)
    assert ("sampling.sync" in why) is ("sampling.sync=adapter" not in keys)


def test_a_float32_adapter_for_the_sampler_of_a_gpu_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"sampling.sync.*float32; write model.dtype: bfloat16, or sync: merged"):
        filled(tmp_path, GPU, ADAPTER, "model.dtype=float32", "sampling.sync=adapter")


def test_an_adapter_for_the_sampler_of_a_mixture_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"sampling.sync.*Triton.*; write sync: merged"):
        filled(tmp_path, CPU, ADAPTER, "sampling.sync=adapter", config=MIXTURE)
    assert filled(tmp_path, GPU, ADAPTER, config=MIXTURE)[0].sampling.sync == "adapter"


@pytest.mark.parametrize(
    "hardware, config, keys, again, why",
    [
        (CPU, LARGE, [], False, "on a CPU"),
        (GPU, SMALL, [], False, "not above 1B"),
        (GPU, LARGE, [], True, "1.3B parameters, above 1B"),
        (GPU, LARGE, ["optim.checkpoint_activations=false"], False, None),
        (CPU, SMALL, ["optim.checkpoint_activations=true"], True, None),
    ],
)
def test_layers_are_computed_again_by_device_and_size(tmp_path, hardware, config, keys, again, why):
    recipe, said = filled(tmp_path, hardware, *keys, config=config)
    assert recipe.optim.checkpoint_activations is again
    assert why in said["optim.checkpoint_activations"] if why else "optim.checkpoint_activations" not in said


def test_layers_that_cannot_be_computed_again_are_kept(tmp_path, monkeypatch):
    for file in ("defaults", "machine"):
        monkeypatch.setattr(f"align.check.{file}.layers", lambda model: [])
    assert filled(tmp_path, GPU, config=LARGE)[0].optim.checkpoint_activations is False
    with pytest.raises(ConfigError, match="checkpoint_activations: .*llama cannot be computed again.*write false"):
        filled(tmp_path, GPU, "optim.checkpoint_activations=true")


QUANTIZED = [ADAPTER, "model.quantize=4bit"]


def test_what_cannot_be_quantised_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("align.check.machine.why_not", lambda: None)
    assert filled(tmp_path, CPU, *QUANTIZED, zero_stage=2)[0].sampling.sync == "adapter"
    with pytest.raises(ConfigError, match=r"model.quantize: ZeRO-3 would.*launch with ZeRO-2"):
        filled(tmp_path, CPU, *QUANTIZED, zero_stage=3)
    with pytest.raises(ConfigError, match=r"model.quantize: the experts of qwen3_moe .*leave it out"):
        filled(tmp_path, CPU, *QUANTIZED, config=MIXTURE)
    monkeypatch.setattr("align.check.machine.why_not", lambda: "bitsandbytes is not installed; pip install it")
    with pytest.raises(ConfigError, match="model.quantize: bitsandbytes is not installed; pip install"):
        filled(tmp_path, CPU, *QUANTIZED)


@pytest.mark.parametrize(
    "hardware, cache, sequences, sleep", [(CPU, 1.0, 64, None), (GPU, None, 256, True), (OLD_GPU, None, 256, True)]
)
def test_the_engine_is_sized_by_device(tmp_path, hardware, cache, sequences, sleep):
    recipe, why = filled(tmp_path, hardware)
    sampling = recipe.sampling
    assert (sampling.cache_gib, sampling.max_sequences, sampling.sleep) == (cache, sequences, sleep)
    assert ("sampling.cache_gib" in why) is (cache is not None)  # else it is known once the trainer is loaded
    given, why = filled(tmp_path, hardware, "sampling={cache_gib: 2, max_sequences: 9, sleep: false}")
    assert (given.sampling.cache_gib, given.sampling.max_sequences, given.sampling.sleep) == (2.0, 9, False)
    assert not {"sampling.cache_gib", "sampling.max_sequences", "sampling.sleep"} & set(why)


@pytest.mark.parametrize(
    "hardware, key, told",
    [
        (CPU, "sampling.sleep=true", r"sampling\.sleep.*vLLM cannot sleep on a CPU; write false"),
        (CPU, "sampling.tensor_parallel=2", r"sampling\.tensor_parallel.*do not divide the 1 processes of a machine"),
    ],
)
def test_what_the_engine_cannot_do_is_told_at_its_key(tmp_path, hardware, key, told):
    with pytest.raises(ConfigError, match=told):
        filled(tmp_path, hardware, key)


@pytest.mark.parametrize(
    "hardware, where, dtype, stage, told",
    [
        (CPU, "cpu", "float32", 2, "on a CPU they are in host memory; leave it out"),
        (CPU, "between_steps", "float32", 2, "on a CPU they are in host memory; leave it out"),
        (GPU, "cpu", "float32", 0, "cpu needs ZeRO; launch with launch/zero2.yaml"),
        (GPU, "cpu", "bfloat16", 0, None),  # ZeRO-2 then
        (GPU, "cpu", "float32", 3, None),
        (GPU, "between_steps", "bfloat16", 2, None),
        (GPU, "between_steps", "bfloat16", 1, "needs ZeRO-2; launch with launch/zero2.yaml"),
        (GPU, "between_steps", "bfloat16", 3, "DeepSpeed moves only states of its own Adam; write cpu"),
        (CPU, "none", "float32", 3, None),
    ],
)
def test_where_the_optimiser_s_states_can_be(tmp_path, hardware, where, dtype, stage, told):
    keys = (f"optim.offload_optimizer={where}", f"model.dtype={dtype}")
    if told is None:
        assert filled(tmp_path, hardware, *keys, zero_stage=stage)[0].optim.offload_optimizer == where
        return
    with pytest.raises(ConfigError, match=rf"offload_optimizer.*{told}"):
        filled(tmp_path, hardware, *keys, zero_stage=stage)


@pytest.mark.parametrize(
    "keys, steps, span, warmup",
    [
        ("run.steps=7", 7, 7, 0),
        ("run.steps=null run.epochs=2", 5, 5, 0),  # 2 x 9 prompts, 4 a step
        ("run.steps=null run.epochs=0.1", 1, 1, 0),
        ("run.steps=null run.epochs=4 optim.warmup_share=0.25", 9, 9, 2),
        ("run.steps=10 optim.schedule_steps=40 optim.warmup_share=0.1", 10, 40, 4),
        ("run.steps=10 optim.warmup_steps=3", 10, 10, 3),
    ],
)
def test_epochs_and_shares_become_steps(tmp_path, keys, steps, span, warmup):
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    prompts = Prompts([Prompt([1], "short", "short", {})] * 9, [])
    recipe = fill_steps(load_experiment(path, ["data.prompts_per_step=4", *keys.split()]), {"data": prompts}).recipe
    assert (recipe.run.steps, recipe.optim.schedule_steps, recipe.optim.warmup_steps) == (steps, span, warmup)
    assert recipe.run.epochs is recipe.optim.warmup_share is None  # so the resolved recipe is one that can be read
