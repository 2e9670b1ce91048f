"""What is asked of vLLM, as plain data: its arguments, the settings of a call, the size of its cache.

Read against vLLM 0.32. What is asked on a GPU was not yet run on one.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from align.config.model_keys import Adapter
from align.config.recipe import Recipe
from align.config.sampling_keys import Sampling
from align.rollout.generator import LIKELIEST
from align.rollout.seeds import Seeds
from align.system.hardware import GIB, Hardware

CPU_BLOCK = 32  # tokens of a block of the cache: prompts are shared by whole blocks, which have 128 tokens by default

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM knows; a smaller adapter fits in the next one

VOCABULARY = 64  # vLLM pads the vocabulary to a multiple of this, and every process takes an equal part

# Share of the free memory that the cache takes on a GPU. The rest is for what the engine computes with and records
# (CUDA graphs), for passes of the trainer while it is awake, and without sleep for the whole update.
ASLEEP, AWAKE = 0.7, 0.35


def engine_arguments(path: str, recipe: Recipe, context: int, hardware: Hardware, cache: int) -> dict[str, Any]:
    """The arguments of `vllm.LLM`. `context`: most tokens of prompt and response; `cache`: bytes for each process.

    Raises `ValueError` for a recipe that the engine would die of.
    """
    sampling = recipe.sampling
    arguments = dict(
        **shared_arguments(path, recipe, context, hardware),
        distributed_executor_backend="external_launcher",
        gpu_memory_utilization=0.05,  # only checked at the start; the next line sizes the cache
        kv_cache_memory_bytes=cache,
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )
    if sampling.sleep:
        arguments["enable_sleep_mode"] = True
    return arguments


def shared_arguments(path: str, recipe: Recipe, context: int, hardware: Hardware) -> dict[str, Any]:
    """The arguments that an engine has wherever it runs, in the trainer's process or in a server's.

    Raises `ValueError` for a recipe that the engine would die of.
    """
    sampling = recipe.sampling
    if problem := sync_problem(recipe, hardware):
        raise ValueError(f"sampling.sync: {problem}")
    arguments = dict(
        model=path,
        dtype=recipe.model.dtype,
        load_format="safetensors",
        trust_remote_code=False,
        tensor_parallel_size=sampling.tensor_parallel,
        max_model_len=context,
        max_num_seqs=sampling.max_sequences,
        enable_prefix_caching=True,
        enforce_eager=not sampling.compile,
        logprobs_mode="processed_logprobs",
        max_logprobs=LIKELIEST,
        seed=recipe.run.seed,
    )
    if not hardware.is_gpu:
        arguments["block_size"] = CPU_BLOCK
    if sampling.sync == "adapter":
        arguments |= lora_arguments(recipe.model.adapter)
    return arguments


def lora_arguments(adapter: Adapter) -> dict[str, Any]:
    """What the engine is told of the adapter. Layers that a recipe names are the only ones that it prepares."""
    rank = next(rank for rank in LORA_RANKS if rank >= adapter.rank)
    named = isinstance(adapter.targets, list)
    targets = {"lora_target_modules": [name.rpartition(".")[2] for name in adapter.targets]} if named else {}
    return {"enable_lora": True, "max_lora_rank": rank, **targets}


def request_settings(sampling: Sampling, **settings: Any) -> dict[str, Any]:
    """The arguments of `vllm.SamplingParams` of a call; texts that end a response may have special tokens."""
    shaping = dict(top_p=sampling.top_p, top_k=sampling.top_k, min_p=sampling.min_p, stop=sampling.stop)
    text = dict(detokenize=bool(sampling.stop), skip_special_tokens=False)
    return {**shaping, **text, **settings}


def request_seeds(seeds: Seeds, hardware: Hardware) -> list[int] | list[None]:
    """The seed of each request; of the n responses to a prompt vLLM gives the i-th the seed plus i.

    None on a CPU, where torch's own stream decides: a request with a seed whose prompt is computed in parts ends that
    engine, which sets back an offset that torch's generators for CPUs do not have (`GPUModelRunner._bookkeeping_sync`).
    On GPUs torch's stream decides nothing: the runner draws the seeds that are missing from numpy, alike on all ranks.
    """
    return list(seeds.requests) if hardware.is_gpu else [None] * len(seeds.requests)


def sync_problem(recipe: Recipe, hardware: Hardware) -> str | None:
    """Why the sampler cannot be synced as the recipe says; None where it can."""
    if hardware.is_gpu and recipe.sampling.sync == "adapter" and recipe.model.dtype == "float32":
        what = "vLLM's LoRA kernels for GPUs take no float32"
        return f"adapter cannot be, for {what}; write model.dtype: bfloat16, or sync: merged"
    return None


def sleep_problem(sampling: Sampling, hardware: Hardware) -> str | None:
    """Why the engine cannot sleep as the recipe says; None where it can."""
    return "vLLM cannot sleep on a CPU; write false" if sampling.sleep and not hardware.is_gpu else None


def parallel_problem(sampling: Sampling, config: PretrainedConfig, processes: int) -> str | None:
    """Why an engine cannot be divided over `sampling.tensor_parallel` of a machine's processes; None where it can."""
    n, text = sampling.tensor_parallel, config.get_text_config()
    if n == 1:
        return None
    if sampling.engine == "transformers":
        return "only vLLM divides a model; write 1, or engine: vllm"
    if processes % n and sampling.engine == "vllm":
        return f"groups of {n} do not divide the {processes} processes of a machine, and one is not over several"
    heads, shared = text.num_attention_heads, kv_heads(text)
    if heads % n:
        return f"{n} does not divide the model's {heads} attention heads"
    if shared % n and n % shared:
        return f"{n} neither divides the model's {shared} key-value heads nor is a multiple of them"
    if VOCABULARY % n:
        return f"{n} does not divide the vocabulary, padded to a multiple of {VOCABULARY}; take a power of 2"
    width = getattr(text, "intermediate_size", None) or 0
    return f"{n} does not divide the model's intermediate size of {width}" if width % n else None


def token_bytes(config: PretrainedConfig, width: int, tensor_parallel: int) -> int:
    """Bytes of the keys and values of one token in one process; `width`: of a number. Heads that cannot be divided any
    further are repeated."""
    text = config.get_text_config()
    heads = max(1, kv_heads(text) // tensor_parallel)
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * head * width


def cache_bytes(free: float, sequence: int, sampling: Sampling) -> int:
    """Bytes of the key-value cache in one process on a GPU: a share of what is free beside trainer and the engine's
    weights, and no more than all sequences can fill.

    `sequence`: bytes of the longest one.
    """
    share = ASLEEP if sampling.sleep else AWAKE
    return max(0, min(sampling.max_sequences * sequence, int(share * free)))


def cache_problem(size: int, sequence: int) -> str | None:
    """Why the engine cannot start with a cache of so many bytes; None where the longest sequence fits."""
    if size >= sequence:
        return None
    what = f"trainer and engine leave {size / GIB:.2g} GiB, and the longest sequence takes {sequence / GIB:.2g}"
    return f"{what}; lower sampling.max_response_tokens, raise sampling.tensor_parallel, or launch more processes"


def kv_heads(text: PretrainedConfig) -> int:
    """Number of heads that keys and values have in a layer."""
    return getattr(text, "num_key_value_heads", None) or text.num_attention_heads
