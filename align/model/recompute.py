"""Activation checkpointing: the backward pass computes a decoder's layers again, which keep their inputs alone.

transformers' own switch works in train mode alone, which turns dropout on too; here
the model stays in the mode that it was loaded in, so that the importance ratio is 1 before an update.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from align.model.attention import implementing


def layers(causal: nn.Module) -> list[nn.Module]:
    """The layers of a decoder that can be computed again; none where transformers does not mark them."""
    return [module for module in causal.get_decoder().modules() if isinstance(module, GradientCheckpointingLayer)]


def recompute_layers(causal: nn.Module) -> None:
    """Have each backward pass compute the layers again. Passes without a gradient stay as they are.

    Values and gradients are those of a model that keeps everything, to the last bit where kernels are deterministic.
    """
    for layer in layers(causal):
        layer.forward = _recomputed(layer.forward, causal.config.get_text_config())


def _recomputed(forward: Callable[..., Any], config: PretrainedConfig) -> Callable[..., Any]:
    """A layer's forward pass that keeps what it is given, and nothing else, for the backward pass."""

    @wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        name = config._attn_implementation

        def again(*args: Any, **kwargs: Any) -> Any:
            """Compute the layer with the attention that it had at first: a backward pass stands in no `attending`."""
            with implementing(config, name):
                return forward(*args, **kwargs)

        # nothing in a layer is random, so that no state of a generator has to be kept
        return checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return recomputed
