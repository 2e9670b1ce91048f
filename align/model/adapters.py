"""LoRA adapters of policy and guide over one shared base, which acts as the policy, the reference or the guide."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from huggingface_hub import file_exists
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.config.recipe import Adapter, Model
from align.model.load import check_same_tokens, load_model, load_tokenizer
from align.model.locate import ModelError, locate, same_model

ModelRole = Literal["policy", "reference", "guide", "base"]  # base: below the adapter

# Settings of LoRA that a recipe says itself, and that change nothing in how an adapter that was saved computes.
OWN = ("r", "lora_alpha", "target_modules", "base_model_name_or_path", "revision", "inference_mode", "task_type")

IDLE = ("auto_mapping", "peft_version", "lora_dropout", "init_lora_weights", "exclude_modules", "fan_in_fan_out")

WEIGHTS = "adapter_model.safetensors"

FRESH = (True, False, "gaussian", "orthogonal")  # first weights that leave the base as it is


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


def start_adapter(name: str, base_name: str) -> str:
    """The folder of the adapter that a run goes on from. Raises `ModelError` unless it is plain LoRA over this base."""
    folder = start_folder(name)
    check_base_name(folder, name, base_name)
    return folder


def start_folder(name: str) -> str:
    """The folder of an adapter to go on from, whatever its base. Raises `ModelError` unless it is plain LoRA."""
    try:
        folder = locate(name)
        _check_is_adapter(folder)
        config = adapter_config(folder)
    except ModelError as error:
        raise ModelError(f"model.adapter.from: {error}") from error
    other = _not_plain(config)
    if other:
        what = f"{name}: its {other} is {config[other]!r}, and only plain LoRA is gone on from"
        raise ModelError(f"model.adapter.from: {what}; merge it into its base and name that as model.policy")
    return folder


def check_base_name(folder: str, name: str, base_name: str) -> None:
    """Raise `ModelError` unless the adapter in a folder says that the policy's base is its own."""
    said = base_names(folder)
    if not any(same_model(one, base_name) for one in said):
        what = f"{name} was trained on {said[0]}, and model.policy is {base_name}; name that base"
        raise ModelError(f"model.adapter.from: {what}")


def filled(adapter: Adapter, folder: str) -> Adapter:
    """The section with rank, alpha and targets of the adapter in `folder`, from which it goes on.

    Raises `ModelError` where the recipe asks for another rank or alpha. Whether its targets are the same layers shows
    on the model: `check_layers`.
    """
    config, given = adapter_config(folder), adapter.model_fields_set
    theirs = {"rank": config["r"], "alpha": float(config["lora_alpha"])}
    for key, value in theirs.items():
        if key in given and getattr(adapter, key) != value:
            what = f"the recipe says {getattr(adapter, key):g}, and {adapter.start} has {value:g}; leave {key} out"
            raise ModelError(f"model.adapter.{key}: {what}")
    if "targets" not in given:
        theirs["targets"] = sorted({layer.rpartition(".")[2] for layer in _layers(folder)})
    return adapter.model_copy(update=theirs)


def check_layers(model: PeftModel, folder: str, name: str) -> None:
    """Raise `ModelError` unless the adapter in `folder` has tensors of the model's adapted layers, and of no others."""
    modules = model.get_base_model().named_modules()
    mine = {f"base_model.model.{layer}" for layer, module in modules if isinstance(module, LoraLayer)}
    theirs = _layers(folder)
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
        said = base_names(folder)
    except ModelError as error:
        raise ModelError(f"model.guide: {error}") from error
    if not any(same_model(one, base_name) for one in said):
        raise ModelError(f"model.guide: {name} was trained on {said[0]}, and the policy's base is {base_name}")
    return folder


def base_names(folder: str | Path) -> list[str]:
    """Names of an adapter's base: the one that PEFT loads, and the one of the recipe that trained it, in align.json.

    Raises `ModelError` where it is no adapter.
    """
    out = [str(adapter_config(folder).get("base_model_name_or_path"))]
    try:
        said = json.loads((Path(folder) / "align.json").read_text(encoding="utf-8"))["base"]["name"]
    except (OSError, ValueError, LookupError, TypeError):  # none that was trained by align
        return out
    return [*out, str(said)]


def adapter_config(folder: str | Path) -> dict:
    """Read the configuration of a LoRA adapter in safetensors.

    Raises `ModelError` for any other: PEFT would unpickle weights, or import a module that the configuration names.
    """
    try:
        config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: no adapter configuration could be read: {error}") from error
    if not (Path(folder) / WEIGHTS).is_file():
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


def _check_is_adapter(folder: str) -> None:
    """Raise `ModelError` for a folder that plainly holds something else, and say what to write instead."""
    here = Path(folder)
    if (here / "adapter_config.json").is_file():
        return
    if (here / "adapter" / "adapter_config.json").is_file():
        raise ModelError(f"{folder}: is the folder of a run; write {here / 'adapter'}")
    if (here / "config.json").is_file():
        raise ModelError(f"{folder}: is a whole model; name it as model.policy")


def _not_plain(config: dict) -> str | None:
    """The first setting of an adapter's configuration that plain LoRA does not have; None where there is none."""
    if config.get("init_lora_weights", True) not in FRESH:
        return "init_lora_weights"
    plain = LoraConfig(peft_type="LORA").to_dict()
    other = [key for key in config if key not in (*OWN, *IDLE) and (config[key] or None) != (plain.get(key) or None)]
    return min(other, default=None)


def _layers(folder: str) -> set[str]:
    """Names of the layers that an adapter in safetensors has tensors of."""
    with safe_open(Path(folder) / WEIGHTS, "pt") as file:
        return {name.partition(".lora_")[0] for name in file.keys()}  # noqa: SIM118 (no mapping)


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
