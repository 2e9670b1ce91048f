"""Give out the policy's weights: merged under the base model's names, or the adapter alone.

One tensor at a time, or one file: no process ever holds the whole model beside its part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from align.learner.sharding import gathered
from align.model.load import shapes
from align.model.quantize import count, whole
from align.ops import directions
from align.system.heap import given_back

SHARD = 2**29  # bytes of a file of a saved model, or else one layer: the most that its writer holds of it


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
            with gathered(module.parameters()):
                yield f"{name}.weight", weigh(module)
                if module.get_base_layer().bias is not None:
                    yield f"{name}.bias", module.get_base_layer().bias.clone()
            continue
        for own, parameter in module.named_parameters(recurse=False):
            with gathered([parameter]):
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


def trainable(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, trained parameter), one at a time; under ZeRO-3 it is whole, and collective, until the next one is asked
    for."""
    yield from _whole(model, [name for name, parameter in model.named_parameters() if parameter.requires_grad])


def save(model: nn.Module, folder: Path, write: bool) -> None:
    """Save the adapter in PEFT format, or the whole model. Gathering is collective; ranks with `write` store it."""
    if isinstance(model, PeftModel):
        state = _kept(trainable(model), write)
        if write:
            # the embeddings are never trained here, and looking for them would ask the hub for the base model
            model.save_pretrained(folder, state_dict=state, save_embedding_layers=False, selected_adapters=["default"])
        return
    parts = shards(model)
    for number, names in enumerate(parts, 1):
        with given_back():
            state = _kept(_whole(model, names), write)
            if write:
                _write_part(model, state, folder, f"-{number:05d}-of-{len(parts):05d}" if len(parts) > 1 else "")
            del state
    if write and len(parts) > 1:
        _write_index(folder)


def shards(model: nn.Module) -> list[list[str]]:
    """Names of the model's parameters by the file that they go to: whole layers in their order, up to `SHARD` bytes.

    What a library splits or joins on its way to a file, such as fused experts, is of one layer.
    """
    parts, used = [], 0
    for names, size in _blocks(model).values():
        if parts and used + size <= SHARD:
            parts[-1] += names
            used += size
        else:
            parts.append(list(names))
            used = size
    return parts


def _blocks(model: nn.Module) -> dict[str, tuple[list[str], int]]:
    """{layer, or parameter outside of one: (names of its parameters, their bytes)}."""
    out: dict[str, tuple[list[str], int]] = {}
    for name, parameter in model.named_parameters():
        names, size = out.get(_block(name), ([], 0))
        size += count(parameter) * parameter.element_size()
        out[_block(name)] = [*names, name], size
    return out


def _whole(model: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """(name, parameter) of those named, as `trainable` gives them."""
    for name in names:
        parameter = model.get_parameter(name)
        with gathered([parameter]):
            yield name, parameter.detach()


def _kept(found: Iterator[tuple[str, Tensor]], keep: bool) -> dict[str, Tensor]:
    """{name: tensor on the CPU} of all, or of none: then they are only gathered."""
    return {name: value.to("cpu", copy=True) for name, value in found if keep}


def _write_part(model: nn.Module, state: dict[str, Tensor], folder: Path, suffix: str) -> None:
    """Write a part of a model into a file of its own, with the configurations."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".part") as part:  # saving removes files of other parts
        model.save_pretrained(part, state_dict=state, max_shard_size=2**60)
        for file in Path(part).iterdir():
            file.rename(folder / f"{file.stem}{suffix if file.suffix == '.safetensors' else ''}{file.suffix}")


def _write_index(folder: Path) -> None:
    """Write which file has which tensor, when all are there."""
    files = sorted(folder.glob("model-*.safetensors"))
    where = {name: file.name for file in files for name in shapes(file)}
    index = {"metadata": {"total_size": sum(file.stat().st_size for file in files)}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def base_size(model: nn.Module) -> int:
    """Number of the base model's parameters, a tied head's once; also of those that are partitioned or quantised."""
    own = [parameter for name, parameter in model.named_parameters() if "lora_" not in name]
    return sum(map(count, own))


@torch.no_grad()
def vocabulary(model: nn.Module) -> dict[str, Tensor]:
    """{`embedding`, `head`: [V,8] float32 on the CPU}: the rows of the two tables along `directions`.

    A few tokens run through every layer, but read few rows of these. Collective under ZeRO-3.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    out = {}
    for name, module in (("embedding", base.get_input_embeddings()), ("head", base.get_output_embeddings())):
        with gathered([module.weight]):
            weight = module.weight
            out[name] = (weight @ directions(weight.shape[1]).to(weight)).float().cpu()
    return out
