"""Attention over packed rows, part by part, is that over a dense mask."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from align.model.attention import Packing, packed_attention


def test_parts_see_what_a_dense_mask_lets_them_see():
    torch.manual_seed(0)
    packing = Packing(((5, (3, 1)), (2, ()), (1, (4, 2, 6))))
    query, key, value = (torch.randn(1, heads, sum(packing.lengths), 8) for heads in (4, 2, 2))
    ours, _ = packed_attention(None, query, key, value, None, 0.3, packing=packing)
    part = torch.arange(len(packing.lengths)).repeat_interleave(torch.tensor(packing.lengths))
    prompt = torch.tensor(packing.prompts)[part]
    sees = ((part[:, None] == part) | (prompt[:, None] == part)).tril()
    dense = scaled_dot_product_attention(query, key, value, sees, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(ours, dense.transpose(1, 2))
