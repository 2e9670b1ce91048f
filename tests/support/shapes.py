"""Models that are too large to load here, by the numbers of their configurations: Qwen3-8B and Llama-3.1-70B.

The numbers are those of the config.json in the hub's repositories Qwen/Qwen3-8B and meta-llama/Llama-3.1-70B.
"""

from __future__ import annotations

from functools import cache

from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from align.check import model_files, remedies, sizes
from align.check.memory import Sampler, Setup, Sizes, fits, phases
from align.config.model_keys import Adapter
from align.model.adapters import add_adapter

QWEN3_8B = Qwen3Config(
    vocab_size=151_936,
    hidden_size=4096,
    intermediate_size=12_288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=40_960,
    tie_word_embeddings=False,
)

LLAMA_70B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=8192,
    intermediate_size=28_672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=131_072,
    tie_word_embeddings=False,
)

MODELS = {"Qwen3-8B": QWEN3_8B, "Llama-3.1-70B": LLAMA_70B}

PROMPT, RESPONSE, GROUP, PROMPTS = 1024, 8192, 8, 64  # tokens, tokens, responses to a prompt, prompts a step

GPUS = (1, 2, 4, 8, 16)


@cache
def policy(name: str, lora: bool) -> Sizes:
    """A policy in bfloat16, all of it trained or an adapter of rank 16 over it."""
    config: PretrainedConfig = MODELS[name]
    model = model_files.skeleton(config, name)
    return sizes.sizes_of(add_adapter(model, Adapter(), name) if lora else model, [], config, 2)


def setup(name: str, *, lora: bool, zero: int, gpus: int, parts: int = 1, gib: float = 80.0) -> Setup:
    """A run without a reference, with what align takes on GPUs where a recipe does not say."""
    sampler = Sampler(sequences=256, context=PROMPT + RESPONSE, merged=not lora, tensor_parallel=parts, sleeps=True)
    return Setup(
        policy=policy(name, lora),
        gpu_gib=gib,
        processes=gpus,
        zero_stage=zero,
        width=2,
        moments=2,
        frozen=0,
        reference=0,
        tokens=PROMPTS * (PROMPT + GROUP * RESPONSE),
        row=PROMPT + RESPONSE,
        micro_batch=4096,
        sampler=sampler,
        checkpointed=True,
    )


def cell(name: str, lora: bool, zero: int, gpus: int) -> str:
    """GiB of the three phases, with the smallest division of the engine that fits, else with the largest."""
    for parts in [n for n in (1, 2, 4, 8) if n <= gpus]:
        depends = setup(name, lora=lora, zero=zero, gpus=gpus, parts=parts)
        if fits(depends):
            break
    found = phases(depends)
    numbers = " / ".join(f"{found[phase]['total']:.0f}" for phase in ("sampling", "update", "sync"))
    divided = f", tp {parts}" if parts > 1 else ""
    return f"{numbers}{divided}" if fits(depends) else f"no: {numbers}{divided}"


def problem(name: str, lora: bool, zero: int, gpus: int) -> str:
    """Why the engine in one piece beside the trainer does not fit, and what would make it fit."""
    depends = setup(name, lora=lora, zero=zero, gpus=gpus)
    return remedies.problem(depends, lambda: policy(name, True)) or "it fits"


TOO_LARGE = (
    ("Qwen3-8B", False, 2, 1),
    ("Qwen3-8B", False, 2, 2),
    ("Llama-3.1-70B", True, 2, 8),
    ("Llama-3.1-70B", True, 3, 4),
    ("Llama-3.1-70B", False, 3, 8),
    ("Llama-3.1-70B", False, 3, 16),
)
