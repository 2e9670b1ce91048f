"""Attention over packed rows."""

import torch
from torch.nn.attention.flex_attention import flex_attention

from align.model.attention import Packing, packed_attention


def test_flex_attention_sees_what_packed_attention_sees():
    """The GPU's way, unfused here, where it has no gradient."""
    torch.manual_seed(0)
    packing = Packing(((5, (3, 1)), (2, ()), (1, (4, 2, 6))))
    query, key, value = (torch.randn(1, heads, sum(packing.lengths), 8) for heads in (4, 2, 2))
    ours, _ = packed_attention(None, query, key, value, None, 0.3, packing=packing)
    mask = packing.block_mask(torch.device("cpu"))
    flex = flex_attention(query, key, value, block_mask=mask, scale=0.3, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(ours, flex)
