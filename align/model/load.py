"""Load models, tokenizers and configurations from a folder, as `locate` gives it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from align.model.locate import ModelError
from align.model.quantize import Quantize, loading, why_not
from align.system.heap import given_back

# what libraries raise on files that are damaged in a way that nobody foresaw
UNREADABLE = (
    *(ValueError, TypeError, LookupError, AttributeError),
    *(OSError, RuntimeError, ArithmeticError, SafetensorError, StrictDataclassError, ImportError),
)

Shapes = dict[str, tuple[int, ...]]  # {name of a weight: its shape}

QUANTISED = ("quantization_config", "compression_config", "quantization")  # keys of transformers, its past, and MLX

FLASH = ("flash_attn", "flash_attn_interface")  # without these, transformers fetches such kernels from the hub

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer. Raises `ModelError` where there is none or it has no end token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except UNREADABLE as error:
        raise ModelError(f"{path}: no tokenizer could be loaded: {_why(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: the tokenizer has no end token, so no response could end")
    return tokenizer


def end_tokens(path: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that end a response: the model's, or the tokenizer's end token where the model names none.

    Raises `ModelError` where the model's are no ids.
    """
    file = Path(path) / "generation_config.json"
    try:
        if file.exists():
            generation = GenerationConfig.from_pretrained(path)
        else:  # transformers and vLLM then read the model's own configuration
            file, generation = Path(path) / "config.json", GenerationConfig.from_model_config(load_config(path))
    except UNREADABLE as error:
        raise error if isinstance(error, ModelError) else ModelError(f"{file}: {_why(error)}; copy it again") from error
    ends = generation.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    for end in ends:
        if type(end) is not int or end < 0:
            raise ModelError(f"{file}: eos_token_id: must be the id of a token or a list of them, but is {end!r}")
    return ends or [tokenizer.eos_token_id]


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a model, as it is.

    Raises `ModelError` where it cannot be read, and where loading would run code of the model's own or take kernels
    from the hub, or would find weights that are quantised or belong to another file.
    """
    file = Path(folder) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"), parse_constant=_constant)
    except OSError as error:
        raise ModelError(f"{folder}: no model configuration could be loaded: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: is not JSON: {error}; copy the model again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file}: must be a mapping of keys, but is {str(config)[:20]!r}; copy the model again")
    if not isinstance(config.get("model_type", ""), str):
        raise ModelError(f"{file}: model_type: must be a name, but is {config['model_type']!r}; copy the model again")
    if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING:
        raise ModelError(f"{file}: needs code of its own (auto_map), which is never run; take one transformers knows")
    for key, value in _items(config):
        if key in QUANTISED and value:
            method = value.get("quant_method") or key if isinstance(value, dict) else key
            what = f"its weights are quantised ({method}), and only whole ones can be trained"
            raise ModelError(f"{file}: {key}: {what}; name the model that they were made of")
        if key.endswith("_implementation"):
            _check_implementation(file, key, value)
        if key == "transformers_weights" and value is not None:
            raise ModelError(f"{file}: {key}: names a file of weights of its own; take the key out")
    if (Path(folder) / "adapter_config.json").exists():
        what = "has an adapter beside the model, and loading would take the adapter's base instead"
        raise ModelError(f"{folder}: {what}; move adapter_config.json elsewhere")
    return config


def load_config(path: str) -> PretrainedConfig:
    """Load a model's configuration. Raises `ModelError`, also for what `read_config` refuses and for no sizes."""
    read_config(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        text = config.get_text_config()
    except UNREADABLE as error:
        raise ModelError(f"{path}: no model configuration could be loaded: {_why(error)}") from error
    if not isinstance(text, PretrainedConfig):
        raise ModelError(f"{path}/config.json: its part for text must be a mapping of keys, but is {text!r}")
    for key in SIZES:
        size = getattr(text, key, None)
        if isinstance(size, str | int | float) and (type(size) is not int or size < 1):
            raise ModelError(f"{path}/config.json: {key}: must be a whole number above 0, but is {size!r}")
    return config


def shapes(file: Path) -> Shapes:
    """{name: shape} of the weights in a safetensors file, from its header. Raises `ModelError` for a damaged one."""
    try:
        with safe_open(file, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: is cut or damaged: {error}; copy or save it again") from error


def context_length(config: PretrainedConfig) -> int | None:
    """Most tokens of prompt and response together; None where the model has no such limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def load_model(path: str, dtype: str, quantize: Quantize | None = None) -> PreTrainedModel:
    """Load a causal language model from safetensors, without dropout: the importance ratio must be 1 before an update.

    Under ZeRO-3, once `optimizer.configure` has set it, each rank keeps its part: transformers makes parameter after
    parameter whole, and the main process reads it from its files, which are mapped. `dtype` must be the one configured.

    Raises `ModelError` where there is none, where its weights are pickled, and for what `read_config` refuses.
    """
    load_config(path)
    if quantize and (problem := why_not()):
        raise ModelError(f"{path}: cannot be quantised: {problem}")
    try:
        with given_back():
            model, loaded = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **loading(quantize, getattr(torch, dtype)),
            )
        if loaded["missing_keys"]:
            raise ValueError(f"weights are missing, {min(loaded['missing_keys'])} among them")
    except UNREADABLE as error:
        raise ModelError(f"{path}: no model could be loaded from safetensors: {_why(error)}") from error
    return model.eval()


def check_same_tokens(policy: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, name: str) -> None:
    """Raise `ModelError` unless the tokenizer of the guide `name` has the policy's vocabulary."""
    if policy.get_vocab() != other.get_vocab():
        raise ModelError(f"model.guide: {name}: its tokenizer is not the policy's, so it cannot score the same tokens")


def _why(error: Exception) -> str:
    """The error's message; transformers would advise to run the code that a model brings along."""
    if "trust_remote_code" in str(error):
        return "it needs code of its own (auto_map), which is never run; name a model that transformers knows"
    return " ".join(str(error).split())


def _constant(name: str) -> float:
    """The number that JSON has no word for. Raises `ValueError` for NaN."""
    if name == "NaN":
        raise ValueError("NaN is no number")
    return float(name)


def _items(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(key, value) of a configuration and of the configurations in it."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict) and not key.endswith("_implementation"):
            yield from _items(value)


def _check_implementation(file: Path, key: str, value: Any) -> None:
    """Raise `ModelError` where a configuration asks for a kernel that would be fetched from the hub."""
    for name in value.values() if isinstance(value, dict) else [value]:
        if name is not None and not isinstance(name, str):
            raise ModelError(f"{file}: {key}: must be a name such as sdpa, but is {name!r}")
        fetched = name and ("/" in name or "flash_attention" in name and not any(map(find_spec, FLASH)))
        if fetched:
            what = f"{name} is a kernel that would be fetched from the hub, and code from there is never run"
            raise ModelError(f"{file}: {key}: {what}; take the key out, or write sdpa")
