"""Adapters as they lie in a folder: what they are, which base they are for, whether they leave it as it is."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from huggingface_hub import file_exists
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from peft import LoraConfig
from safetensors import safe_open

from align.config.model_keys import Adapter
from align.model.load import shapes
from align.model.locate import ModelError, locate, same_model

WEIGHTS = "adapter_model.safetensors"

# Keys of a LoRA configuration under which the base stays as it is. All others must be as PEFT has them by default: they
# change the base, or answers in ways that `acting_as` does not switch (biases, whole modules, tokens, repeated layers).
# OWN: what a recipe says itself. IDLE: what changes nothing once an adapter is saved. HARMLESS: more than plain LoRA.
OWN = (
    *("r", "lora_alpha", "target_modules", "base_model_name_or_path", "revision", "inference_mode"),
    *("task_type", "peft_type"),
)
IDLE = (
    *("auto_mapping", "peft_version", "lora_dropout", "init_lora_weights", "exclude_modules", "fan_in_fan_out"),
    "ensure_weight_tying",
)
HARMLESS = (
    *("lora_bias", "use_rslora", "use_dora", "use_qalora", "qalora_group_size", "rank_pattern", "alpha_pattern"),
    *("layers_to_transform", "layers_pattern"),
)

REPEATS = 6  # in a pattern that names layers

# first weights of an adapter that leave the base as it is; those of pissa, olora, corda, loftq and others do not
PLAIN_INITS = ("true", "false", "none", "gaussian", "orthogonal", "eva", "mica")


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


def guide_adapter(name: str, base_name: str) -> str:
    """The folder of a guide that is an adapter. Raises `ModelError` unless its base is the policy's.

    A token's reward is the guide's log-probability less the reference's, so the two need one base.
    """
    try:
        folder = locate(name)
        said = base_names(folder)
        check_only_lora(folder)
    except ModelError as error:
        raise ModelError(f"model.guide: {error}") from error
    if not any(same_model(one, base_name) for one in said):
        raise ModelError(f"model.guide: {name} was trained on {said[0]}, and the policy's base is {base_name}")
    return folder


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
        check_only_lora(folder)
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
        theirs["targets"] = sorted({layer.rpartition(".")[2] for layer in layers_of(folder)})
    return adapter.model_copy(update=theirs)


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
    """Read the configuration of a LoRA adapter in safetensors that leaves its base as it is.

    Raises `ModelError` for any other: PEFT would unpickle weights, import a module that the configuration names, or
    change the base, which the policy and the reference share with a guide.
    """
    try:
        config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder}: no adapter configuration could be read: {error}") from error
    if not (Path(folder) / WEIGHTS).is_file():
        raise ModelError(
            f"{folder}: has no adapter_model.safetensors; an adapter is never read from pickle (.bin, .pt):"
            " save it with save_pretrained"
        )
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{folder}: adapter_config.json describes no plain LoRA adapter, and others are not loaded")
    defaults = LoraConfig().to_dict()
    unset = (None, False, [])  # {} turns a kind of LoRA on whose settings are None by default
    strange = [
        key
        for key, value in config.items()
        if key not in (*OWN, *IDLE, *HARMLESS) and value not in unset and value != defaults.get(key, {})
    ]
    if str(config.get("init_lora_weights")).lower() not in PLAIN_INITS:
        strange.append("init_lora_weights")
    if strange:
        what = f"{strange[0]}: {config[strange[0]]!r} in adapter_config.json can change the base that it is put over"
        fix = "save it as a plain LoRA adapter (PEFT: path_initial_model_for_weight_conversion), or name a whole model"
        raise ModelError(f"{folder}: {what}, which policy and reference share; {fix}")
    if what := _unusable(config):
        raise ModelError(f"{folder}: {what} in adapter_config.json; save the adapter again")
    return config


def _unusable(config: dict) -> str | None:
    """Say which number or pattern of an adapter's configuration cannot be used; None where all can.

    PEFT matches patterns with every layer's name. One that repeats a group, or repeats often, may take hours for that.
    """
    by_layer = [config[key] for key in ("rank_pattern", "alpha_pattern") if isinstance(config.get(key), dict)]
    for value in (config.get("lora_alpha"), *(value for pattern in by_layer for value in pattern.values())):
        if type(value) not in (int, float) or not 0 < value < math.inf:
            return f"the rank or alpha {value!r}"
    named = [config.get(key) for key in ("target_modules", "exclude_modules", "layers_pattern")]
    listed = [text for value in named if isinstance(value, list) for text in value]
    for text in (*named, *listed, *(name for pattern in by_layer for name in pattern)):
        if not isinstance(text, str):
            continue
        try:
            re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            return f"the pattern {text[:60]!r}, which is none ({error}),"
        if re.search(r"\)\s*[*+{]", text) or len(re.findall(r"[*+{]", text)) > REPEATS:
            return f"the pattern {text[:60]!r}, which could take hours to match,"
    return None


def check_only_lora(folder: str | Path) -> None:
    """Raise `ModelError` where an adapter's file holds weights of the base too, which loading would put into it."""
    weights = Path(folder) / WEIGHTS
    if own := sorted(name for name in shapes(weights) if not any(part.startswith("lora_") for part in name.split("."))):
        what = f"{weights} holds {own[0]}, a weight of the base, which policy and reference share"
        raise ModelError(f"{what}; save the adapter with save_embedding_layers=False, or name a whole model")


def layers_of(folder: str) -> set[str]:
    """Names of the layers that an adapter in safetensors has tensors of."""
    with safe_open(Path(folder) / WEIGHTS, "pt") as file:
        return {name.partition(".lora_")[0] for name in file.keys()}  # noqa: SIM118 (no mapping)


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
    plain = LoraConfig().to_dict()
    return min((key for key in HARMLESS if (config.get(key) or None) != (plain.get(key) or None)), default=None)
