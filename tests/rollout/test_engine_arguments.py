"""What is asked of vLLM, on a CPU and with a GPU that is only described: nothing here ran on one."""

import pytest
from support.recipes import BASE
from transformers import LlamaConfig

from align.check.defaults import fill_defaults
from align.config.experiment import load_experiment
from align.config.launch import Launch
from align.config.sampling_keys import Sampling
from align.rollout.engine_arguments import (
    cache_bytes,
    cache_problem,
    engine_arguments,
    parallel_problem,
    request_seeds,
    request_settings,
    sync_problem,
    token_bytes,
)
from align.rollout.seeds import Draw
from align.system.hardware import GIB, Hardware

CPU, GPU = Hardware("cpu", 24), Hardware("cuda", 80)
QWEN_8B = LlamaConfig(
    hidden_size=4096, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128
)


def recipe_of(tmp_path, hardware, *keys):
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    experiment, _ = fill_defaults(load_experiment(path, keys), LlamaConfig(), Launch(processes=4, hardware=hardware))
    return experiment.recipe


def asked(tmp_path, hardware, *keys):
    return engine_arguments("model", recipe_of(tmp_path, hardware, *keys), 96, hardware, 2**30)


ADAPTER = "model.adapter={rank: 12}"


def test_what_only_one_device_is_asked(tmp_path):
    on_cpu, on_gpu = asked(tmp_path, CPU), asked(tmp_path, GPU)
    assert on_cpu.pop("block_size") == 32 and "block_size" not in on_gpu
    assert on_gpu.pop("enable_sleep_mode") is True and "enable_sleep_mode" not in on_cpu
    differ = {name: (on_cpu[name], on_gpu[name]) for name in on_cpu if on_cpu[name] != on_gpu[name]}
    assert differ == {"dtype": ("float32", "bfloat16"), "max_num_seqs": (64, 256)}
    assert on_cpu["kv_cache_memory_bytes"] == 2**30 and on_cpu["max_model_len"] == 96


def test_an_adapter_is_asked_for_with_a_rank_that_vllm_knows(tmp_path):
    on_gpu = asked(tmp_path, GPU, ADAPTER)
    assert on_gpu["enable_lora"] and on_gpu["max_lora_rank"] == 16
    assert "enable_lora" not in asked(tmp_path, CPU, ADAPTER)  # merged there


def test_the_engine_refuses_a_float32_adapter_on_a_gpu(tmp_path):
    """Where nothing else did: it would die inside a kernel."""
    recipe = recipe_of(tmp_path, CPU, ADAPTER, "sampling.sync=adapter")
    assert sync_problem(recipe, CPU) is None
    with pytest.raises(ValueError, match=r"sampling.sync: adapter cannot be, for vLLM's LoRA kernels .* float32"):
        engine_arguments("model", recipe, 96, GPU, 2**30)


def test_requests_have_seeds_on_a_gpu_and_none_on_a_cpu():
    seeds = Draw(0, 1, 0).seeds(0, [4, 7])
    assert request_seeds(seeds, GPU) == seeds.requests and len(set(seeds.requests)) == 2
    assert request_seeds(seeds, CPU) == [None, None]


def test_texts_that_end_a_response_need_the_text():
    assert not request_settings(Sampling(), n=2)["detokenize"]
    found = request_settings(Sampling(stop=["x"], top_p=0.5), n=2)
    assert found["detokenize"] and (found["top_p"], found["stop"], found["n"]) == (0.5, ["x"], 2)


def test_the_bytes_of_a_token():
    assert token_bytes(QWEN_8B, 2, 1) == 147_456  # 2 x 36 layers x 8 heads x 128 x 2 bytes
    assert token_bytes(QWEN_8B, 2, 4) == 147_456 / 4
    assert token_bytes(QWEN_8B, 2, 16) == token_bytes(QWEN_8B, 2, 8)  # a head is not divided


@pytest.mark.parametrize(
    "free, sleep, sequences, gib",
    [
        (40, True, 256, 28.0),  # of 40 free
        (40, False, 256, 14.0),
        (40, True, 8, 4.5),  # 8 x 4,096 tokens of 147,456 bytes: no more can be filled
        (-2, True, 256, 0.0),
    ],
)
def test_the_cache_is_a_share_of_what_is_free_and_no_more_than_can_be_filled(free, sleep, sequences, gib):
    sampling, sequence = Sampling(max_sequences=sequences, sleep=sleep), 4096 * token_bytes(QWEN_8B, 2, 1)
    size = cache_bytes(free * GIB, sequence, sampling)
    assert size / GIB == pytest.approx(gib)
    assert (cache_problem(size, sequence) is None) is (free > 0)


def test_a_cache_that_holds_no_sequence_says_what_to_lower():
    told = cache_problem(GIB // 4, GIB // 2)
    assert "leave 0.25 GiB, and the longest sequence takes 0.5; lower sampling.max_response_tokens" in told


@pytest.mark.parametrize(
    "n, processes, config, problem",
    [
        (1, 3, {}, None),
        (2, 8, {}, None),
        (8, 8, {"num_key_value_heads": 2}, None),  # repeated
        (2, 3, {}, "groups of 2 do not divide the 3 processes of a machine"),
        (4, 8, {"num_attention_heads": 6}, "4 does not divide the model's 6 attention heads"),
        (4, 8, {"num_key_value_heads": 6}, "4 neither divides the model's 6 key-value heads nor is a multiple"),
        (3, 6, {"num_attention_heads": 6, "num_key_value_heads": 3}, "3 does not divide the vocabulary, padded"),
        (4, 4, {"intermediate_size": 250}, "4 does not divide the model's intermediate size of 250"),
    ],
)
def test_what_an_engine_can_be_divided_over(n, processes, config, problem):
    shape = {"hidden_size": 768, "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 256}
    told = parallel_problem(Sampling(tensor_parallel=n), LlamaConfig(**{**shape, **config}), processes)
    assert told is None if problem is None else told.startswith(problem)


def test_only_vllm_is_divided():
    told = parallel_problem(Sampling(tensor_parallel=2, engine="transformers"), LlamaConfig(), 2)
    assert told == "only vLLM divides a model; write 1, or engine: vllm"
