"""Floating-point operations: what an update needs, what this machine's matrix products reach, and where time goes."""

import statistics
import time
from collections.abc import Callable

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.profiler import ProfilerActivity, profile

from align.model.attention import Packing
from align.model.layouts import Inputs
from align.model.policy import Policy

SIZES = (1024, 2048, 4096)  # of square matrices


def useful(policy: Policy, inputs: Inputs) -> float:
    """Of one forward and backward pass over packed rows with LoRA: nothing computed twice, no padding, no element-wise
    work. A frozen matrix takes part in the output and in the gradient of its input, an adapter's in its own as well."""
    loras = [module for module in policy.causal.get_decoder().modules() if isinstance(module, LoraLayer)]
    frozen = sum(module.get_base_layer().weight.numel() for module in loras)
    trained = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    head = policy.causal.get_output_embeddings().weight.numel()
    config = policy.config.get_text_config()
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    tokens, predictions = inputs.input_ids.numel(), inputs.targets.numel()
    attention = 4 * pairs(inputs.attention) * width * config.num_hidden_layers
    return tokens * (4 * frozen + 6 * trained) + 4 * predictions * head + 3 * attention


def pairs(packing: Packing) -> int:
    """Queries with the keys that they see."""
    out = 0
    for prompt, responses in packing.groups:
        out += prompt * (prompt + 1) // 2 + sum(n * prompt + n * (n + 1) // 2 for n in responses)
    return out


def peak(dtype: torch.dtype, repeats: int = 10) -> float:
    """Operations a second of the fastest matrix product among several sizes."""
    best = 0.0
    for size in SIZES:
        layer = nn.Linear(size, size, bias=False, dtype=dtype)
        x = torch.randn(size, size, dtype=dtype)
        with torch.no_grad():
            layer(x)
            for _ in range(repeats):
                start = time.perf_counter()
                layer(x)
                best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def profiled(work: Callable[[], dict], dtype: torch.dtype) -> dict:
    """`shares`: what each operation takes of the profiled work, which is slower than it is without the profiler;
    `products_s`: the seconds of its matrix products alone, of the same shapes, one after the other."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        seconds = work()["seconds"]
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    products = [e for e in found.key_averages(group_by_input_shape=True) if e.key == "aten::mm"]
    return {
        "profiled_s": seconds,
        "shares": {event.key: event.self_cpu_time_total / 1e6 / seconds for event in events[:12]},
        "products_s": sum(event.count * _product(*event.input_shapes, dtype) for event in products),
    }


def _product(left: list[int], right: list[int], dtype: torch.dtype, repeats: int = 5) -> float:
    """Seconds, median."""
    a, b = torch.randn(left, dtype=dtype), torch.randn(right[::-1], dtype=dtype).T  # weights lie [out,in]
    a @ b
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return statistics.median(times)
