"""Load models, tokenizers and configurations from a folder, as `locate` gives it."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from align.model.locate import ModelError

# what libraries raise on files that are damaged in a way that nobody foresaw
UNREADABLE = (
    *(ValueError, TypeError, LookupError, AttributeError),
    *(OSError, RuntimeError, ArithmeticError, SafetensorError),
)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer. Raises `ModelError` where there is none or it has no end token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: no tokenizer could be loaded: {_why(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: the tokenizer has no end token, so no response could end")
    return tokenizer


def end_tokens(path: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that end a response: the model's, or the tokenizer's end token where the model names none."""
    try:
        generation = GenerationConfig.from_pretrained(path)
    except OSError:  # a model without one: transformers and vLLM then read its own configuration
        generation = GenerationConfig.from_model_config(load_config(path))
    ends = generation.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return ends or [tokenizer.eos_token_id]


def load_config(path: str) -> PretrainedConfig:
    """Load a model's configuration. Raises `ModelError`."""
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: no model configuration could be loaded: {_why(error)}") from error


def context_length(config: PretrainedConfig) -> int | None:
    """Most tokens of prompt and response together; None where the model has no such limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def load_model(path: str, dtype: str) -> PreTrainedModel:
    """Load a causal language model from safetensors, without dropout: the importance ratio must be 1 before an update.

    Raises `ModelError` where there is none, where its weights are pickled, or where it needs code of its own.
    """
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if loaded["missing_keys"]:
            raise ValueError(f"weights are missing, {min(loaded['missing_keys'])} among them")
    except (OSError, ValueError) as error:
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
    return str(error)
