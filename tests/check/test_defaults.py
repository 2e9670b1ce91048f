"""Defaults that depend on the model, the data or the machine."""

import pytest
from support.recipes import BASE
from transformers import LlamaConfig

from align.check.defaults import fill_defaults, fill_steps
from align.config.experiment import load_experiment
from align.config.launch import Launch
from align.config.recipe_file import ConfigError
from align.data.prompts import Prompt, Prompts
from align.system.hardware import Hardware

CPU, GPU, OLD_GPU = Hardware("cpu", 24), Hardware("cuda", 80), Hardware("cuda", 16, bfloat16=False)


def filled(tmp_path, hardware, *keys):
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    experiment, chosen = fill_defaults(load_experiment(path, keys), LlamaConfig(), Launch(hardware=hardware))
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
        (CPU, "sampling.tensor_parallel=2", r"sampling\.tensor_parallel.*do not divide the 1 processes of this launch"),
    ],
)
def test_what_the_engine_cannot_do_is_told_at_its_key(tmp_path, hardware, key, told):
    with pytest.raises(ConfigError, match=told):
        filled(tmp_path, hardware, key)


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
