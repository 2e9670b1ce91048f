"""Rows of a batch among ranks: each rank holds those of its own groups, and they give each other what is asked for.

`Batch.row` tells which rows a rank holds. Where it is None every rank has the whole batch and nothing moves; where it
is not, everything here is collective. Tokens travel without padding, whole numbers as int32 where they fit.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from align.batch import Batch

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # {bytes: type in which equal bits are equal}

Columns = Mapping[str, Tensor]  # {name: [B], [B,1] or [B,T]}


@dataclass(frozen=True)
class Packed:
    """A column of some rows as it travels: the tokens of each row one behind the other, or a value a row."""

    values: Tensor  # one value where all are the same
    dtype: torch.dtype
    ragged: bool


@dataclass(frozen=True)
class Parcel:
    """Some rows on their way to a rank."""

    size: Tensor  # [R] tokens of each row
    columns: dict[str, Packed]
    lists: dict[str, list]  # {field of the batch: a list a row}


def place() -> tuple[int, int]:
    """(number of this rank, number of ranks)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gathered(value: Any) -> list[Any]:
    """What each rank gives, in their order. Collective."""
    out: list[Any] = [None] * place()[1]
    dist.all_gather_object(out, value)
    return out


def total(batch: Batch, numbers: Sequence[float]) -> list[float]:
    """The sums over ranks of numbers that each found in its rows."""
    return list(numbers) if batch.row is None else [sum(column) for column in zip(*gathered(numbers), strict=True)]


def swap(parts: Sequence[Any]) -> list[Any]:
    """Give each rank its part, and get one from each, in their order. Collective."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    blocks = [bytearray(pickle.dumps(part)) for part in parts]
    sizes = torch.tensor([len(block) for block in blocks], device=device)
    coming = torch.empty_like(sizes)
    dist.all_to_all_single(coming, sizes)
    sent = torch.cat([torch.frombuffer(block, dtype=torch.uint8) for block in blocks]).to(device)
    got = torch.empty(int(coming.sum()), dtype=torch.uint8, device=device)
    dist.all_to_all_single(got, sent, coming.tolist(), sizes.tolist())
    return [pickle.loads(block.numpy()) for block in got.cpu().split(coming.tolist())]


def columns_of(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by their names."""
    return {f.name: value for f in fields(batch) if isinstance(value := getattr(batch, f.name), Tensor)}


LISTS = ("prompt_ids", "token_text")  # fields of a batch that are a list a row


def pack(columns: Columns, batch: Batch, index: Tensor, lists: Sequence[str] = LISTS) -> Parcel:
    """Pack columns of the rows at `index` of a batch, and lists of it. A tensor under several names travels once."""
    size, width, known = batch.size[index], batch.mask.shape[1], {}
    present = torch.arange(width) < size[:, None]
    for value in columns.values():
        if id(value) not in known:
            ragged = value.dim() == 2 and value.shape[1] == width > 1
            known[id(value)] = _packed(value[index][present] if ragged else value[index], ragged)
    given = {name: value for name in lists if (value := getattr(batch, name))}
    told = {name: [value[i] for i in index.tolist()] for name, value in given.items()}
    return Parcel(size.int(), {name: known[id(value)] for name, value in columns.items()}, told)


def _packed(values: Tensor, ragged: bool) -> Packed:
    dtype = values.dtype
    if values.numel():
        if dtype == torch.int64 and values.abs().amax() < 2**31:
            values = values.int()
        bits = values.contiguous().view(BITS[values.element_size()])
        if ragged and (bits == bits[0]).all():
            values = values[:1].clone()
    return Packed(values, dtype, ragged)


def unpack(parcels: Sequence[Parcel], width: int) -> tuple[dict[str, Tensor], dict[str, list]]:
    """({name: [R,...]}, {field: a list a row}) of the rows of several parcels, one behind the other; `width` is T."""
    parcels = [parcel for parcel in parcels if len(parcel.size)] or parcels[:1]
    size = torch.cat([parcel.size for parcel in parcels])
    present, known, out = torch.arange(width) < size[:, None], {}, {}
    for name in parcels[0].columns:
        parts = [parcel.columns[name] for parcel in parcels]
        key = tuple(map(id, parts))
        if key not in known:
            tokens = [int(parcel.size.sum()) for parcel in parcels]
            known[key] = _unpacked(parts, tokens, present, empty=-1 if name.endswith("turn") else 0)
        out[name] = known[key]
    return out, {name: [row for p in parcels for row in p.lists[name]] for name in parcels[0].lists}


def _unpacked(parts: Sequence[Packed], tokens: Sequence[int], present: Tensor, empty: int) -> Tensor:
    dtype = parts[0].dtype
    if not parts[0].ragged:
        return torch.cat([part.values for part in parts]).to(dtype)
    out = torch.full(present.shape, empty, dtype=dtype)
    flat = [
        part.values.expand(n) if len(part.values) == 1 else part.values for part, n in zip(parts, tokens, strict=True)
    ]
    out[present] = torch.cat(flat).to(dtype)
    return out


def whole(batch: Batch) -> Batch:
    """The batch of all ranks, in the order of its rows. A batch that each rank has is that."""
    if batch.row is None:
        return batch
    parcels = gathered(pack(columns_of(batch), batch, torch.arange(len(batch.row))))
    columns, lists = unpack(parcels, batch.mask.shape[1])
    order = columns["row"].argsort()
    return replace(batch, **{**columns, **lists}).rows(order) if len(order) else batch


def own(after: Batch, everything: Batch, mine: Batch) -> Batch:
    """This rank's rows of what a transform made of `everything`, the `whole` of `mine`; what it left as it was is
    `mine`'s."""
    if mine.row is None:
        return after
    changed = {}
    for f in fields(after):
        value = getattr(after, f.name)
        if value is not getattr(everything, f.name):
            changed[f.name] = value[mine.row] if isinstance(value, Tensor) else value
    return replace(mine, **changed)


def share(batch: Batch) -> Batch:
    """This rank's groups of a batch that every rank has, dealt out in their order."""
    rank, count = place()
    if count == 1:
        return batch
    number = torch.unique(batch.group, return_inverse=True)[1]
    rows = (number % count == rank).nonzero()[:, 0]
    return replace(batch, row=torch.arange(len(number))).rows(rows)
