"""Give out the policy's weights: merged under the base model's names, or the adapter alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path

import torch
from deepspeed.runtime.zero import GatheredParameters
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from align.model.quantize import count, whole


@torch.no_grad()
def merged(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name in the base model's files, weight) of every parameter, LoRA added in, one layer at a time.

    The sum is made beside the trainer's weights, never in place: merging and unmerging would round them.
    A tied head is given too: a sampler that ties by copying would keep the old one. Collective under ZeRO-3.
    """
    yield from _as_stored(model, _with_adapter)


@torch.no_grad()
def base(model: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """(name in the base model's files, weight) of every parameter as `merged` gives them, without the adapter."""
    yield from _as_stored(model, _without_adapter)


def _as_stored(model: nn.Module, weigh: Callable[[LoraLayer], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(name in the base model's files, weight) of every parameter; `weigh` gives those of adapted layers."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    found = _named(base, weigh)
    if not conversions(base):
        yield from found
        return
    for _, weights in groupby(found, key=lambda item: _block(item[0])):
        yield from revert_weight_conversion(base, dict(weights)).items()


def conversions(base: nn.Module) -> list:
    """What makes the weights of the model's files its parameters; none for most models. A mixture has its experts in
    one tensor, and its files have tensors of each."""
    loaded = getattr(base, "_weight_conversions", None)
    return get_model_conversion_mapping(base, add_legacy=False) if loaded is None else loaded


def _named(base: nn.Module, weigh: Callable[[LoraLayer], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(name in the base model, whole weight) of every parameter."""
    adapted = " "  # the layer whose modules are under way
    for name, module in base.named_modules():
        if name.startswith(adapted):
            continue
        if isinstance(module, LoraLayer):
            adapted = f"{name}."
            with _gathered(list(module.parameters())):
                yield f"{name}.weight", weigh(module)
                if module.get_base_layer().bias is not None:
                    yield f"{name}.bias", module.get_base_layer().bias.clone()
            continue
        for own, parameter in module.named_parameters(recurse=False):
            with _gathered([parameter]):
                yield f"{name}.{own}" if name else own, whole(module, own).detach().clone()


def _with_adapter(module: LoraLayer) -> Tensor:
    """The weight of an adapted layer, LoRA added in."""
    weight = _without_adapter(module)
    if "default" not in module.scaling:  # only the guide adapts this layer
        return weight
    return weight + module.get_delta_weight("default").to(weight.dtype)


def _without_adapter(module: LoraLayer) -> Tensor:
    """The weight of an adapted layer as its base has it."""
    return whole(module.get_base_layer(), "weight").clone()


def _block(name: str) -> str:
    """The decoder layer that a weight belongs to; of one outside of the layers its own name."""
    found = re.match(r".*?\.\d+\.", name)
    return found[0] if found else name


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
    """Number of the base model's parameters, a tied head's once; also of those that are partitioned or quantised."""
    own = [parameter for name, parameter in model.named_parameters() if "lora_" not in name]
    return sum(map(count, own))


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
