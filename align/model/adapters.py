"""LoRA adapters of policy and guide over one shared base, which acts as the policy, the reference or the guide."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from huggingface_hub import file_exists
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.config.recipe import Adapter, Model
from align.model.load import check_same_tokens, load_model, load_tokenizer
from align.model.locate import ModelError, locate

ModelRole = Literal["policy", "reference", "guide"]


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


def is_adapter(name: str) -> bool:
    """Whether a folder or repository holds an adapter, not a whole model. Raises `ModelError` where it is missing."""
    if name.startswith("pypi:"):
        return False
    if Path(name).is_dir():
        return (Path(name) / "adapter_config.json").is_file()
    if name.count("/") != 1:
        raise ModelError(f"model.guide: {name}: no such folder")
    try:
        return file_exists(name, "adapter_config.json")
    except (HTTPError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(f"model.guide: {name}: no such folder, and the hub does not answer: {error}") from error


def guide_model(guide: str, policy: Model, path: str, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """Load the guide as a model of its own; an adapter gets a copy of the policy's base, whose folder is `path`.

    Raises `ModelError`.
    """
    if is_adapter(guide):
        return PeftModel.from_pretrained(load_model(path, policy.dtype), guide_adapter(guide, policy.policy)).eval()
    own = locate(guide)
    check_same_tokens(tokenizer, load_tokenizer(own), guide)
    return load_model(own, policy.dtype)


def guide_adapter(name: str, base_name: str) -> str:
    """The folder of a guide that is an adapter. Raises `ModelError` unless its base is the policy's.

    A token's reward is the guide's log-probability less the reference's, so the two need one base.
    """
    try:
        folder = locate(name)
        trained_on = adapter_config(folder).get("base_model_name_or_path")
    except ModelError as error:
        raise ModelError(f"model.guide: {error}") from error
    if trained_on != base_name:
        raise ModelError(f"model.guide: {name} was trained on {trained_on}, and the policy's base is {base_name}")
    return folder


def adapter_config(folder: str | Path) -> dict:
    """Read the configuration of a LoRA adapter in safetensors.

    Raises `ModelError` for any other: PEFT would unpickle weights, or import a module that the configuration names.
    """
    try:
        config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: no adapter configuration could be read: {error}") from error
    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{folder}: has no adapter_model.safetensors; an adapter is never read from pickle (.bin, .pt):"
            " save it with save_pretrained"
        )
    if config.get("peft_type") != "LORA" or config.get("megatron_config"):
        raise ModelError(f"{folder}: adapter_config.json describes no plain LoRA adapter, and others are not loaded")
    return config


def add_guide(model: PeftModel, path: str, base_name: str) -> None:
    """Load the guide's adapter beside the policy's, frozen. Raises `ModelError` where it does not fit the base."""
    folder = guide_adapter(path, base_name)
    try:
        model.load_adapter(folder, "guide", is_trainable=False, autocast_adapter_dtype=False)
    except (ValueError, OSError, RuntimeError) as error:
        raise ModelError(
            f"model.guide: {path}: this adapter cannot be loaded over the policy's base: {error}"
        ) from error


@contextmanager
def acting_as(model: PeftModel, who: ModelRole) -> Iterator[None]:
    """Have the model compute inside the block as the reference, its base without an adapter, or as the guide."""
    if who == "reference":
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


def _targets(model: nn.Module, targets: str | list[str]) -> str | list[str]:
    """Names of linear layers as PEFT takes them. Raises `ModelError` where the model has none of them."""
    if targets == "all-linear":
        return targets
    if isinstance(targets, list):
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        named = [name for name, module in model.named_modules() if module in ends and name.endswith(tuple(targets))]
        if named:
            raise ModelError(f"model.adapter.targets: {named[0]} cannot have an adapter; name layers inside the blocks")
        return targets
    part = {"attention": "att", "mlp": "mlp"}[targets]
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(part in piece for piece in name.split(".")[:-1])
    }
    if not names:
        raise ModelError(f"model.adapter.targets: no linear layer of this model stands in a module named *{part}*")
    return sorted(names)
