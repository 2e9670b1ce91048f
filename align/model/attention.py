"""Attention over packed rows: each response attends to its prompt and to itself, and nothing else is computed.

Decoders of transformers call an attention function by name; here is one for packed sequences: torch's attention on the
parts, on a GPU flex attention. A dense mask over the whole packed sequence would give the same and pay for every pair
of responses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig

from align.model import flex

UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")  # what some models ask of attention


@dataclass(frozen=True)
class Packing:
    """Where prompts and responses stand in a packed sequence."""

    groups: tuple[tuple[int, tuple[int, ...]], ...]  # one after the other: (prompt tokens, tokens of each response)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt and response, in their order."""
        return [length for prompt, responses in self.groups for length in (prompt, *responses)]

    @property
    def prompts(self) -> list[int]:
        """For each prompt and response the number of its prompt, which is its own for a prompt."""
        out: list[int] = []
        for _, responses in self.groups:
            out += [len(out)] * (1 + len(responses))
        return out


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    packing: Packing | flex.Blocks | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """[1,S,H,D] from query [1,H,S,D], key and value [1,H/n,S,D]: causal in each prompt, and in each response behind
    its prompt.

    Raises `NotImplementedError` for a model that does not pass on `packing`, and for whatever it asks of attention that
    would silently be left out here; `ModelError` where a GPU has no kernel for it.
    """
    if packing is None:
        raise NotImplementedError("this model does not pass on to its attention what the decoder is given")
    for name in UNSUPPORTED:
        if asked.get(name) is not None:
            raise NotImplementedError(f"attention over packed rows has no {name}")
    if attention_mask is not None or asked.get("dropout"):
        raise NotImplementedError("attention over packed rows has no mask of a model's own and no dropout")
    if isinstance(packing, flex.Blocks):
        return flex.attention(query, key, value, packing, scaling).transpose(1, 2), None
    parts = zip(*(tensor.split(packing.lengths, 2) for tensor in (query, key, value)), strict=True)
    out = []
    for prompt, responses in packing.groups:
        q, prompt_k, prompt_v = next(parts)
        out.append(scaled_dot_product_attention(q, prompt_k, prompt_v, is_causal=True, scale=scaling, enable_gqa=True))
        longest = max(responses, default=0)
        sees = torch.ones(longest, prompt + longest, dtype=torch.bool, device=q.device).tril(prompt)
        for length in responses:
            q, k, v = next(parts)
            k, v = torch.cat((prompt_k, k), 2), torch.cat((prompt_v, v), 2)
            mask = sees[:length, : prompt + length]
            out.append(scaled_dot_product_attention(q, k, v, mask, scale=scaling, enable_gqa=True))
    return torch.cat(out, 2).transpose(1, 2), None


AttentionInterface.register("packed", packed_attention)


@contextmanager
def attending(
    config: PretrainedConfig, attention: Tensor | Packing, device: torch.device
) -> Iterator[Mapping[str, Any]]:
    """Give the arguments that confine the decoder's attention, and set it up for them inside the block.

    A [R,S] mask is used as it is; a packed sequence by flex attention on a GPU, in parts elsewhere.
    """
    if isinstance(attention, Tensor):
        yield {"attention_mask": attention.to(device)}
        return
    gpu = device.type == "cuda"
    packing = flex.blocks(attention.lengths, attention.prompts, device) if gpu else attention
    with implementing(config.get_text_config(), "packed"):
        yield {"packing": packing}


@contextmanager
def implementing(config: PretrainedConfig, name: str) -> Iterator[None]:
    """Have the decoder of this configuration attend by the function called `name` inside the block."""
    own = config._attn_implementation
    try:
        config._attn_implementation = name
        yield
    finally:
        config._attn_implementation = own
