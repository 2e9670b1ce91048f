"""Give out the policy's weights: merged under the base model's names, or the adapter alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from deepspeed.runtime.zero import GatheredParameters
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


@torch.no_grad()
def merged(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name in the base model, weight) of every parameter, LoRA added in, one layer at a time.

    The sum is made beside the trainer's weights, never in place: merging and unmerging would round them.
    A tied head is given too: a sampler that ties by copying would keep the old one. Collective under ZeRO-3.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    inside: set[int] = set()
    for name, module in base.named_modules():
        if isinstance(module, LoraLayer):
            inside |= {id(p) for p in module.parameters()}
            with _gathered(list(module.parameters())):
                layer, weight = module.get_base_layer(), module.get_base_layer().weight
                ours = "default" in module.scaling  # else only the guide adapts this layer
                more = module.get_delta_weight("default").to(weight.dtype) if ours else torch.zeros_like(weight)
                yield f"{name}.weight", weight + more
                if layer.bias is not None:
                    yield f"{name}.bias", layer.bias.clone()
    for name, parameter in base.named_parameters(remove_duplicate=False):
        if id(parameter) not in inside:
            with _gathered([parameter]):
                yield name, parameter.detach().clone()


@torch.no_grad()
def trainable(model: nn.Module) -> dict[str, Tensor]:
    """{name: whole tensor on the CPU} of the trained parameters; under ZeRO-3 only these are gathered. Collective."""
    out = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with _gathered([parameter]):
                out[name] = parameter.detach().cpu().clone()
    return out


def save(model: nn.Module, folder: Path, write: bool) -> None:
    """Save the adapter in PEFT format, or the whole model. Gathering is collective; ranks with `write` store it."""
    state = trainable(model)
    if write:
        # the embeddings are never trained here, and looking for them would ask the hub for the base model
        own = {"save_embedding_layers": False, "selected_adapters": ["default"]} if isinstance(model, PeftModel) else {}
        model.save_pretrained(folder, state_dict=state, **own)


def base_size(model: nn.Module) -> int:
    """Number of the base model's parameters, a tied head's once; also of those that ZeRO-3 has partitioned."""
    own = [parameter for name, parameter in model.named_parameters() if "lora_" not in name]
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in own)


def directions(width: int) -> Tensor:
    """[width,8] fixed random directions, along which the rows of a table are told apart."""
    return torch.randn(width, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def vocabulary(model: nn.Module) -> dict[str, Tensor]:
    """{`embedding`, `head`: [V,8] float32 on the CPU}: the rows of the two tables along `directions`.

    A few tokens run through every layer, but read few rows of these. Collective under ZeRO-3.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    out = {}
    for name, module in (("embedding", base.get_input_embeddings()), ("head", base.get_output_embeddings())):
        with _gathered([module.weight]):
            weight = module.weight
            out[name] = (weight @ directions(weight.shape[1]).to(weight)).float().cpu()
    return out


def _gathered(parameters: list[nn.Parameter]):
    """Make parameters whole inside the block under ZeRO-3, where it is collective; elsewhere they are already."""
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    return GatheredParameters(partitioned) if partitioned else nullcontext()
