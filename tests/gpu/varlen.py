"""A candidate for packed rows on a GPU that compiles nothing: torch's flash attention over sequences of many lengths.

A response attends to a copy of its prompt's keys and values and then to its own, as `torch.nn.attention.varlen` has it
where keys are more than queries. It pays for the copies, which the backward pass keeps. Part 2 measures it beside flex
attention; it is no part of `align` until a measurement says when it should be taken.
"""

import inspect

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from align.model.attention import Packing


class Gathered:
    """Where the keys of each part stand, on a device."""

    def __init__(self, packing: Packing, device: str):
        lengths, prompts = torch.tensor(packing.lengths), packing.prompts
        begin = lengths.cumsum(0) - lengths
        index, keys = [], []
        for part, prompt in enumerate(prompts):
            parts = [part] if prompt == part else [prompt, part]
            index += [torch.arange(int(begin[i]), int(begin[i] + lengths[i])) for i in parts]
            keys.append(sum(int(lengths[i]) for i in parts))
        self.index = torch.cat(index).to(device)
        self.longest = max(packing.lengths), max(keys)
        starts = [torch.nn.functional.pad(counts.cumsum(0), (1, 0)) for counts in (lengths, torch.tensor(keys))]
        self.starts = [each.int().to(device) for each in starts]


def attention(query: Tensor, key: Tensor, value: Tensor, gathered: Gathered) -> Tensor:
    """[1,S,H,D] from query [1,H,S,D], key and value [1,H/n,S,D], in bfloat16 or float16."""
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    known = inspect.signature(varlen_attn).parameters
    causal = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "enable_gqa" in known:
        causal["enable_gqa"] = True
    else:
        k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], 1) for tensor in (k, v))
    out = varlen_attn(q, k[gathered.index], v[gathered.index], *gathered.starts, *gathered.longest, **causal)
    return out[None]
