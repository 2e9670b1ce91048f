"""Attention over packed rows on a GPU: torch's flex attention, one compiled kernel that skips the blocks of positions
of which none sees another.

It is compiled here and not by transformers, whose wrapper compiles again for many lengths until torch gives up and
computes the scores of all pairs, silently. Here lengths are multiples of `BLOCK` and dynamic, so that one kernel serves
all packings, and what was not compiled is an error. Nobody has run it on a GPU yet; `tests/gpu` measures it there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from align.model.locate import ModelError

BLOCK = 128  # positions of a block

SHORTEST = 2 * BLOCK  # torch compiles sequences of a single block on their own

SMALLEST_HEAD = 16  # numbers of a head; the kernel multiplies no smaller matrices

FIX = "write optim.layout: padded, or mend what keeps torch from compiling (TORCH_LOGS=recompiles tells)"


@dataclass(frozen=True)
class Blocks:
    """Which positions of a packed sequence see which, as flex attention reads it."""

    # of blocks, in the order of `BlockMask`: those seen in part, those seen whole, and both from the key's side
    pairs: tuple[Tensor, ...]
    spans: tuple[Tensor, ...]  # 3 x [S] int32: where a position's part begins, where its prompt does, and its end


def filled(positions: int) -> int:
    """Positions of a sequence when its last block is filled."""
    return max(SHORTEST, -(-positions // BLOCK) * BLOCK)


def blocks(lengths: list[int], prompts: list[int], device: torch.device) -> Blocks:
    """Find the blocks that see each other, where parts of these lengths stand one after the other, each causal and
    behind the whole part that is its prompt (its own number for a prompt).

    Counts the pairs of each two blocks from the parts' overlaps with them: a dense mask of 32,768 positions has 1 GiB.
    Raises `ValueError` for a sequence that is not filled.
    """
    length_N, prompt_N = torch.tensor(lengths), torch.tensor(prompts)
    parts, positions = len(lengths), sum(lengths)
    if positions != filled(positions):
        raise ValueError(f"{positions} positions are no whole blocks: the layout of GPUs fills them")
    part_S = torch.arange(parts).repeat_interleave(length_N)
    cell_S = torch.arange(positions) // BLOCK * parts + part_S
    count = torch.bincount(cell_S, minlength=positions // BLOCK * parts).view(-1, parts).float()  # [block,part] tokens
    own = (count @ count.T).tril(-1) + (count * (count + 1) / 2).sum(1).diag()
    behind = torch.where(prompt_N == torch.arange(parts), 0.0, count) @ count[:, prompt_N].T
    seen = own + behind  # [query block, key block] pairs, exact: at most 2^14
    whole, partly = seen == BLOCK**2, (seen > 0) & (seen < BLOCK**2)
    begin_N = length_N.cumsum(0) - length_N
    ends = (begin_N, begin_N[prompt_N], (begin_N + length_N)[prompt_N])
    return Blocks(
        tuple(t for pairs in (partly, whole, partly.T, whole.T) for t in _ordered(pairs, device)),
        tuple(_dynamic(end_N[part_S].int().to(device), 0) for end_N in ends),
    )


def _ordered(pairs: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """([1,1,Q] number of blocks that each one has, [1,1,Q,K] their indices first), both int32."""
    count, indices = pairs.sum(1), pairs.int().argsort(dim=1, descending=True, stable=True)
    count, indices = (t.int()[None, None].to(device) for t in (count, indices))
    return _dynamic(count, 2), _dynamic(indices, 2, 3)


def _dynamic(tensor: Tensor, *dimensions: int) -> Tensor:
    """The same tensor; what is compiled for it holds for other sizes of these dimensions too."""
    torch._dynamo.mark_dynamic(tensor, dimensions)
    return tensor


def attention(query: Tensor, key: Tensor, value: Tensor, seen: Blocks, scale: float | None) -> Tensor:
    """[1,H,S,D] from query [1,H,S,D], key and value [1,H/n,S,D].

    Raises `ModelError` where torch would compute the scores of all pairs instead of compiling a kernel, and
    `NotImplementedError` for heads that are too small for one.
    """
    if query.shape[-1] < SMALLEST_HEAD:
        raise NotImplementedError(f"flex attention has no heads of {query.shape[-1]} numbers")
    query, key, value = (_dynamic(tensor, 2) for tensor in (query, key, value))
    try:
        with torch._dynamo.config.patch(specialize_float=True):  # a kernel has its scale as a constant
            return _compiled()(query, key, value, seen.pairs, seen.spans, scale)
    except (BackendCompilerFailed, FailOnRecompileLimitHit) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"flex attention did not compile ({type(error).__name__}: {reason}); {FIX}") from error


@cache
def _compiled():
    """Compiled at the first call; any break of the graph is an error."""
    return torch.compile(_attend, fullgraph=True)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, pairs: tuple[Tensor, ...], spans: tuple[Tensor, ...], scale: float | None
) -> Tensor:
    """Attention as it is compiled."""
    if not torch.compiler.is_compiling():
        raise ModelError(f"flex attention was not compiled and would compute the scores of all pairs; {FIX}")
    positions = query.shape[2]
    torch._check(key.shape[2] == positions)
    torch._check(value.shape[2] == positions)
    torch._check(positions % BLOCK == 0)
    own, first, last = spans

    def sees(b, h, query, key):
        return (query >= key) & ((key >= own[query]) | ((key >= first[query]) & (key < last[query])))

    mask = BlockMask((positions, positions), *pairs, (BLOCK, BLOCK), sees)
    return flex_attention(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)
