"""Attention over packed rows: each response attends to its prompt and to itself, and nothing else is computed.

Decoders of transformers call an attention function by name; here is one for packed sequences. A dense mask over the
whole packed sequence would give the same and pay for every pair of responses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig

UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")  # what some models ask of attention


@dataclass(frozen=True)
class Packing:
    """Where prompts and responses stand in a packed sequence."""

    groups: tuple[tuple[int, tuple[int, ...]], ...]  # one after the other: (prompt tokens, tokens of each response)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt and response, in their order."""
        return [length for prompt, responses in self.groups for length in (prompt, *responses)]

    def block_mask(self, device: torch.device) -> BlockMask:
        """The mask of this packing for flex attention."""
        lengths = torch.tensor(self.lengths)
        prompts: list[int] = []
        for _, responses in self.groups:
            prompts += [len(prompts)] * (1 + len(responses))
        part = torch.arange(len(lengths)).repeat_interleave(lengths).to(device)  # [S]
        prompt_of = torch.tensor(prompts).repeat_interleave(lengths).to(device)  # [S] the part that is its prompt

        def sees(b, h, query, key):
            return (query >= key) & ((part[key] == part[query]) | (part[key] == prompt_of[query]))

        compiled = device.type == "cuda"  # without compiling the mask would be dense first
        return create_block_mask(sees, None, None, len(part), len(part), device=device, _compile=compiled)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    packing: Packing | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """[1,S,H,D] from query [1,H,S,D], key and value [1,H/n,S,D]: causal in each prompt, and in each response behind
    its prompt.

    Raises `NotImplementedError` for a model that does not pass on `packing`, and for whatever it asks of attention that
    would silently be left out here.
    """
    if packing is None:
        raise NotImplementedError("this model does not pass on to its attention what the decoder is given")
    for name in UNSUPPORTED:
        if asked.get(name) is not None:
            raise NotImplementedError(f"attention over packed rows has no {name}")
    if attention_mask is not None or asked.get("dropout"):
        raise NotImplementedError("attention over packed rows has no mask of a model's own and no dropout")
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

    A [R,S] mask is used as it is; a packed sequence by flex attention on a GPU, by `packed_attention` elsewhere.
    """
    if isinstance(attention, Tensor):
        yield {"attention_mask": attention.to(device)}
        return
    name = "flex_attention" if device.type == "cuda" else "packed"
    with implementing(config.get_text_config(), name):
        yield {"attention_mask": attention.block_mask(device)} if name == "flex_attention" else {"packing": attention}


@contextmanager
def implementing(config: PretrainedConfig, name: str) -> Iterator[None]:
    """Have the decoder of this configuration attend by the function called `name` inside the block."""
    own = config._attn_implementation
    try:
        config._attn_implementation = name
        yield
    finally:
        config._attn_implementation = own
