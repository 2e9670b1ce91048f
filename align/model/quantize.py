"""Quantise a frozen base to 4 bits as it is loaded (QLoRA, arXiv 2305.14314); an adapter over it is trained.

Linear layers become NF4 with quantised constants, as in the paper; embeddings, head and norms stay whole. bitsandbytes
does it, and computes with weights that it makes whole again for each product. So a sampler with those whole weights
computes what the trainer does: vLLM 0.32 has no bitsandbytes of its own.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

Quantize = Literal["4bit"]

BYTES = 0.5 + (1 + 4 / 256) / 64  # of a weight: 4 bits, and a byte for 64 of them with a float32 for 256 of those


def why_not() -> str | None:
    """Why nothing can be quantised here; None where it can."""
    return None if find_spec("bitsandbytes") else "bitsandbytes is not installed; pip install 'align[quantize]'"


def loading(quantize: Quantize | None, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is told besides, to load a base that computes in `dtype`."""
    if quantize is None:
        return {}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config}


def whole(module: nn.Module, name: str) -> Tensor:
    """A module's own parameter, made whole where it is quantised."""
    parameter = module.get_parameter(name)
    return dequantize_module_weight(module) if hasattr(parameter, "quant_state") else parameter


def count(parameter: nn.Parameter) -> int:
    """Number of weights in a parameter, whichever way they are stored."""
    state = getattr(parameter, "quant_state", None)
    return getattr(parameter, "ds_numel", parameter.numel()) if state is None else state.shape.numel()
