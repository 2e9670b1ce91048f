"""Check the files of a model, a tokenizer and an adapter before any weight is loaded."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jinja2 import TemplateError
from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from align.model.load import UNREADABLE, Shapes, read_config, shapes
from align.model.locate import ModelError

NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})  # of a chat template

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_folder(name: str) -> None:
    """Raise `ModelError` for a path that is no folder, and for a model that `read_config` refuses."""
    file = Path(name) / "config.json"
    if not Path(name).is_dir():
        if Path(name).is_absolute() or name.startswith(("./", "../")) or name.count("/") > 1:
            raise ModelError(f"{name}: no such folder; write a folder, a hub name user/model, or pypi:PACKAGE")
        return
    if not file.is_file() and (Path(name) / "adapter_config.json").is_file():
        what = f"is an adapter; write its base here, and model.adapter: {{from: {name}}} to go on from it"
        raise ModelError(f"{name}: {what}")
    if not file.is_file():
        raise ModelError(f"{name}: has no config.json; name the folder that save_pretrained wrote")
    read_config(name)


def stored(folder: str) -> Shapes:
    """{name: shape} of the weights in a local folder, from the headers of its safetensors files.

    Raises `ModelError` where there are none, where they are cut or damaged, and where an index names missing ones.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    for index in Path(folder).glob("*.safetensors.index.json"):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except UNREADABLE as error:
            raise ModelError(f"{index}: is no index of weights: {error!r}; copy the model again") from error
        missing = sorted(named - {file.name for file in files})
        if missing:
            raise ModelError(f"{index}: names {missing[0]}, which is not there; copy the model again")
    if not files:
        pickled = sorted(file.name for kind in PICKLED for file in Path(folder).glob(kind))
        has = f"only pickled weights ({pickled[0]}), which can run code" if pickled else "no weights"
        raise ModelError(f"{folder}: has {has}; save them with save_pretrained as safetensors")
    return {name: shape for file in files for name, shape in shapes(file).items()}


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
    except UNREADABLE as error:
        what = " ".join(str(error).split())
        raise ModelError(f"{name}: its config.json makes no causal language model: {what}; copy it again") from error


def check_layers(config: PretrainedConfig, have: Shapes, name: str) -> None:
    """Raise `ModelError` where a configuration has more layers than there are weights, before they are all made."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > len(have):
        what = f"its configuration has {layers} layers, and there are {len(have)} weights"
        raise ModelError(f"{name}: {what}; take weights and configuration of one model")


def check_weights(folder: str, model: PreTrainedModel, have: Shapes) -> None:
    """Raise `ModelError` where the weights in a local folder are not those that its configuration describes."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    ignored = re.compile("|".join(getattr(model, "_keys_to_ignore_on_load_missing", None) or ["$^"]))
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    tied |= {name for name in wanted if ignored.search(name)}
    if (renamed := _as_loaded(have, model)) is None:
        return _compare_shapes(folder, have, wanted)
    _compare(folder, renamed, wanted, tied)


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
    lora.base_model_name_or_path = None  # PEFT would warn that the skeleton has another name
    have = stored(folder)
    if not have:
        raise ModelError(f"{folder}: its file of weights is empty; save the adapter again")
    try:
        with torch.device("meta"):
            adapted = get_peft_model(skeleton(config, folder), lora, autocast_adapter_dtype=False)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{folder}: cannot be put over the policy's base: {error}") from error
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    _compare(folder, have, {name: tuple(value.shape) for name, value in wanted.items()}, set())
    if unknown := sorted(set(have) - set(wanted)):
        raise ModelError(f"{folder}: {unknown[0]} belongs to no layer that it adapts; save the adapter again")


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


def _as_loaded(have: Shapes, model: PreTrainedModel) -> Shapes | None:
    """The weights under the names that loading gives them; None where it makes others of them, so that names tell
    nothing."""
    conversions = get_model_conversion_mapping(model)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    own, out = model.state_dict(), {}
    for name, shape in have.items():
        renamed, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, own)
        if converted:
            return None
        out[renamed] = shape
    return out


def _compare_shapes(folder: str, have: Shapes, wanted: Shapes) -> None:
    """Raise `ModelError` where weights of one name have two shapes."""
    for name in sorted(set(have) & set(wanted)):
        if have[name] != wanted[name]:
            what = f"{name} is {list(have[name])}, and its configuration asks for {list(wanted[name])}"
            raise ModelError(f"{folder}: {what}; take weights and configuration of one model")


def _compare(folder: str, have: Shapes, wanted: Shapes, tied: set[str]) -> None:
    """Raise `ModelError` where shapes differ or weights are missing."""
    _compare_shapes(folder, have, wanted)
    missing = sorted(set(wanted) - set(have) - tied)
    if missing:
        unknown = sorted(set(have) - set(wanted))
        named = f"; what is there has other names, such as {unknown[0]}" if unknown else ""
        what = f"{len(missing)} of {len(wanted)} weights are missing, {missing[0]} among them{named}"
        raise ModelError(f"{folder}: {what}; they would be drawn at random: copy or save it again")
