"""Adapters on a model: that of the policy, the one it starts from, that of a guide, and which of them acts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from zlib import crc32

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.config.model_keys import Adapter, Model
from align.model.adapter_files import WEIGHTS, guide_adapter, is_adapter, layers_of
from align.model.load import UNREADABLE, check_same_tokens, load_model, load_tokenizer
from align.model.locate import ModelError, locate

ModelRole = Literal["policy", "reference", "guide", "base"]  # base: below the adapter


def add_adapter(model: PreTrainedModel, adapter: Adapter, base_name: str) -> nn.Module:
    """Put a fresh LoRA adapter over the model; only the adapter is trainable. Raises `ModelError` for wrong targets."""
    lora = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=_targets(model, adapter.targets),
        task_type="CAUSAL_LM",
    )
    try:
        wrapped = get_peft_model(model, lora, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ModelError(f"model.adapter.targets: {error}") from error
    wrapped.peft_config["default"].base_model_name_or_path = base_name
    return wrapped.eval()


def check_layers(model: PeftModel, folder: str, name: str) -> None:
    """Raise `ModelError` unless the adapter in `folder` has tensors of the model's adapted layers, and of no others."""
    modules = model.get_base_model().named_modules()
    mine = {f"base_model.model.{layer}" for layer, module in modules if isinstance(module, LoraLayer)}
    theirs = layers_of(folder)
    if mine != theirs:
        layer = min(mine ^ theirs)
        where = f"{layer.removeprefix('base_model.model.')}, for which it has {'none' if layer in mine else 'some'}"
        what = f"not the layers that {name} has tensors for, such as {where}"
        raise ModelError(f"model.adapter.targets: {what}; leave targets out")


def start_from(model: PeftModel, folder: str) -> None:
    """Load the adapter in `folder` into the policy's own, and once more beside it, frozen, as the reference.

    Raises `ModelError` where it does not fit.
    """
    try:
        loaded = set_peft_model_state_dict(model, load_file(Path(folder) / WEIGHTS), "default")
        missing = [name for name in loaded.missing_keys if ".default." in name]
        if missing or loaded.unexpected_keys:
            raise ValueError(f"{min([*missing, *loaded.unexpected_keys])} is on one side only")
        model.load_adapter(folder, "reference", is_trainable=False, autocast_adapter_dtype=False)
    except (ValueError, OSError, RuntimeError) as error:
        raise ModelError(f"model.adapter.from: {folder}: does not fit the policy's base: {error}") from error


def guide_model(guide: str, policy: Model, path: str, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """Load the guide as a model of its own; an adapter gets a copy of the policy's base, whose folder is `path`.

    Raises `ModelError`.
    """
    if is_adapter(guide):
        base = load_model(path, policy.dtype, policy.quantize)
        return PeftModel.from_pretrained(base, guide_adapter(guide, policy.policy)).eval()
    own = locate(guide)
    check_same_tokens(tokenizer, load_tokenizer(own), guide)
    return load_model(own, policy.dtype)


def add_guide(model: PeftModel, path: str, base_name: str) -> None:
    """Load the guide's adapter beside the policy's, frozen, and prove that the base is what it was.

    Raises `ModelError` where the adapter does not fit the base, or changes it.
    """
    folder, before = guide_adapter(path, base_name), _checksums(model)
    try:
        found = model.load_adapter(folder, "guide", is_trainable=False, autocast_adapter_dtype=False)
    except UNREADABLE as error:
        raise ModelError(
            f"model.guide: {path}: this adapter cannot be loaded over the policy's base: {error}"
        ) from error
    if wrong := [*found.unexpected_keys, *(key for key in found.missing_keys if ".guide" in key)]:
        raise ModelError(f"model.guide: {path}: {wrong[0]} of this adapter and of the policy's base do not fit")
    after = _checksums(model)
    if changed := sorted(name for name in {*before, *after} if before.get(name) != after.get(name)):
        what = f"loading this adapter changed {changed[0]} of the policy's base"
        raise ModelError(
            f"model.guide: {path}: {what}; name a whole model, or an adapter that leaves its base as it is"
        )


def _checksums(model: nn.Module) -> dict[str, int]:
    """{name of a weight or buffer without its adapters: checksum}; under ZeRO-3 of this process's part of it."""
    out = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not any(part.startswith("lora_") for part in name.split(".")):
            here = getattr(tensor, "ds_tensor", tensor).detach().cpu().contiguous()
            out[name.replace(".base_layer", "")] = crc32(here.view(-1).view(torch.uint8).numpy())
    return out


@contextmanager
def acting_as(model: PeftModel, who: ModelRole) -> Iterator[None]:
    """Have the model compute inside the block as its base without an adapter, as the guide, or as the reference: the
    adapter that the run started from, or the base where it started from a fresh one."""
    if who == "base" or who not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    try:
        for layer in layers:
            layer.set_adapter(who, inference_mode=True)
        yield
    finally:
        for layer in layers:
            layer.set_adapter("default")


def experts(model: nn.Module) -> set[int]:
    """Numbers of experts whose weights are one tensor; none where no layer is such a mixture."""
    modules = [module for module in model.modules() if not isinstance(module, nn.Conv1d)]
    return {p.shape[0] for module in modules for p in module.parameters(recurse=False) if p.dim() == 3}


@contextmanager
def scaled(model: PeftModel, by: float, part: str | None) -> Iterator[None]:
    """Have the policy's adapter act with another scale inside the block, in the layers whose names end in `part`, or in
    all."""
    named = [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer) and "default" in m.scaling]
    layers = [layer for name, layer in named if part is None or name.rpartition(".")[2] == part]
    own = [layer.scaling["default"] for layer in layers]
    try:
        for layer, scale in zip(layers, own, strict=True):
            layer.scaling["default"] = by * scale
        yield
    finally:
        for layer, scale in zip(layers, own, strict=True):
            layer.scaling["default"] = scale


def adapted_parts(model: PeftModel) -> list[str]:
    """The last names of the layers that the policy's adapter has, such as q_proj."""
    named = [name for name, m in model.named_modules() if isinstance(m, LoraLayer) and "default" in m.scaling]
    return sorted({name.rpartition(".")[2] for name in named})


def _targets(model: nn.Module, targets: str | list[str]) -> str | list[str]:
    """Names of linear layers as PEFT takes them. Raises `ModelError` where the model has none of them."""
    fused = experts(model)
    if targets == "all-linear" and not fused:
        return targets
    if isinstance(targets, list):
        if moved := [name for name in targets if _moves(model, name)]:
            what = f"{moved[0]} would be the experts or the router of {model.config.model_type}, which get no adapter"
            raise ModelError(f"model.adapter.targets: {what}; write attention, or leave model.adapter out to train all")
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        named = [name for name, module in model.named_modules() if module in ends and name.endswith(tuple(targets))]
        if named:
            raise ModelError(f"model.adapter.targets: {named[0]} cannot have an adapter; name layers inside the blocks")
        return targets
    part = {"attention": "att", "mlp": "mlp", "all-linear": ""}[targets]
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(part in piece for piece in name.split(".")[:-1])
        if module.out_features not in experts(model.get_submodule(name.rpartition(".")[0]))  # a router is beside them
    }
    names = {name for name in names if not _moves(model, name)}
    if not names:
        what = f"no linear layer of this model stands in a module named *{part}*"
        experts_too = "; the experts of a mixture get no adapter: write attention" if fused else ""
        raise ModelError(f"model.adapter.targets: {what}{experts_too}")
    return sorted(names)


def _moves(model: nn.Module, name: str) -> bool:
    """Whether PEFT would put an adapter for layers of this name over the experts or the router of a mixture instead.

    It would do so for adapters from before their weights became one tensor. Experts then cost a copy of all of them in
    each pass, and no engine here takes an adapter of such tensors.
    """
    lora = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(lora, model, None)
    except ValueError:  # one of two projections that are one tensor by now
        return True
    return bool(lora.target_parameters)
