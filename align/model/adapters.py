"""LoRA adapters of policy and guide over one shared base, which acts as the policy, the reference or the guide."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from zlib import crc32

import torch
from huggingface_hub import file_exists
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.config.recipe import Adapter, Model
from align.model.load import UNREADABLE, check_same_tokens, load_model, load_tokenizer, shapes
from align.model.locate import ModelError, locate

ModelRole = Literal["policy", "reference", "guide"]

# Keys of a LoRA configuration that say which layers have an adapter and how much it adds: the base stays as it is. All
# others must be as PEFT has them by default, since they change the base, or answers in ways that `acting_as` does not
# switch: initialisations that take a part out of the weights, biases, whole modules, tokens, layers that are repeated.
PLAIN = {
    *("r", "lora_alpha", "lora_dropout", "lora_bias", "use_rslora", "use_dora", "use_qalora", "qalora_group_size"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    *("fan_in_fan_out", "init_lora_weights", "ensure_weight_tying"),
    *(
        "task_type",
        "peft_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "peft_version",
    ),
}

# first weights of an adapter that leave the base as it is; those of pissa, olora, corda, loftq and others do not
PLAIN_INITS = ("true", "false", "none", "gaussian", "orthogonal", "eva", "mica")


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
        check_only_lora(folder)
    except ModelError as error:
        raise ModelError(f"model.guide: {error}") from error
    if trained_on != base_name:
        raise ModelError(f"model.guide: {name} was trained on {trained_on}, and the policy's base is {base_name}")
    return folder


def adapter_config(folder: str | Path) -> dict:
    """Read the configuration of a LoRA adapter in safetensors that leaves its base as it is.

    Raises `ModelError` for any other: PEFT would unpickle weights, import a module that the configuration names, or
    change the base, which the policy and the reference share with a guide.
    """
    try:
        config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder}: no adapter configuration could be read: {error}") from error
    weights = Path(folder) / "adapter_model.safetensors"
    if not weights.is_file():
        raise ModelError(
            f"{folder}: has no adapter_model.safetensors; an adapter is never read from pickle (.bin, .pt):"
            " save it with save_pretrained"
        )
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{folder}: adapter_config.json describes no plain LoRA adapter, and others are not loaded")
    defaults = LoraConfig().to_dict()
    unset = (None, False, [])
    strange = [k for k, v in config.items() if k not in PLAIN and v not in unset and v != defaults.get(k, v)]
    if str(config.get("init_lora_weights")).lower() not in PLAIN_INITS:
        strange.append("init_lora_weights")
    if strange:
        what = f"{strange[0]}: {config[strange[0]]!r} in adapter_config.json can change the base that it is put over"
        fix = "save it as a plain LoRA adapter (PEFT: path_initial_model_for_weight_conversion), or name a whole model"
        raise ModelError(f"{folder}: {what}, which policy and reference share; {fix}")
    return config


def check_only_lora(folder: str | Path) -> None:
    """Raise `ModelError` where an adapter's file holds weights of the base too, which loading would put into it."""
    weights = Path(folder) / "adapter_model.safetensors"
    if own := sorted(name for name in shapes(weights) if not any(part.startswith("lora_") for part in name.split("."))):
        what = f"{weights} holds {own[0]}, a weight of the base, which policy and reference share"
        raise ModelError(f"{what}; save the adapter with save_embedding_layers=False, or name a whole model")


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
