"""How rows become model input: padded side by side, or packed behind their shared prompt.

Both give the same log-probabilities. `padded` works for every model and is the oracle; `shared_prefix`
computes the prompt of a group once, forward and backward, and needs a model that attends by mask alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from align.batch import Batch


@dataclass(frozen=True)
class Inputs:
    """R sequences of S positions, N of which predict a target token that is wanted."""

    input_ids: Tensor  # [R,S]
    attention_mask: Tensor  # [R,S], or [1,1,S,S] bool: who sees whom
    position_ids: Tensor  # [R,S]
    predict_at: Tensor  # [N] positions, the same for all sequences
    targets: Tensor  # [R,N] token ids
    source: Tensor  # [K] flat index into R*N of each wanted token
    place: Tensor  # [K] flat index into B*T of the same token
    row: Tensor  # [K] row of the batch that it belongs to

    def scatter(self, value_RN: Tensor, shape: torch.Size) -> Tensor:
        """[B,T] with the wanted values in place and 0 elsewhere; differentiable."""
        out = torch.zeros(shape.numel(), dtype=value_RN.dtype)
        wanted = value_RN.flatten()[self.source.to(value_RN.device)].cpu()
        return out.index_put((self.place,), wanted).view(shape)


@dataclass(frozen=True)
class Layout:
    """How rows become input, and how many positions that takes."""

    name: str
    inputs: Callable[[Batch, Tensor], Inputs]  # (rows, wanted [B,T]) -> input
    positions: Callable[[Batch, list[int]], int]  # (batch, rows) -> positions of these rows in one micro-batch


def _padded(batch: Batch, wanted_BT: Tensor) -> Inputs:
    """Prompts padded on the left, responses on the right, to the longest of these rows; every position of the
    responses predicts."""
    B, T = len(batch.mask), max(1, int(batch.length.max()))
    P = max(len(prompt) for prompt in batch.prompt_ids)
    input_ids = torch.zeros(B, P + T, dtype=torch.int64)
    seen = torch.zeros(B, P + T, dtype=torch.int64)
    for i, prompt in enumerate(batch.prompt_ids):
        input_ids[i, P - len(prompt) : P] = torch.tensor(prompt)
        seen[i, P - len(prompt) : P] = 1
    input_ids[:, P:] = torch.where(batch.mask, batch.response_ids, 0)[:, :T]
    seen[:, P:] = batch.mask[:, :T]
    return Inputs(
        input_ids=input_ids,
        attention_mask=seen,
        position_ids=(seen.cumsum(1) - 1).clamp(min=0),
        predict_at=torch.arange(P - 1, P + T - 1),
        targets=batch.response_ids[:, :T],
        source=wanted_BT[:, :T].flatten().nonzero()[:, 0],
        place=wanted_BT.flatten().nonzero()[:, 0],
        row=wanted_BT.nonzero()[:, 0],
    )


def _padded_positions(batch: Batch, rows: list[int]) -> int:
    longest = max(len(batch.prompt_ids[i]) for i in rows) + max(1, *(int(batch.mask[i].sum()) for i in rows))
    return len(rows) * longest


def _shared_prefix(batch: Batch, wanted_BT: Tensor) -> Inputs:
    """One sequence: each group's prompt, then its responses, each seeing the prompt and itself only.

    Positions restart behind the prompt. A response's last token is no input: nothing is predicted from it.
    """
    T = batch.mask.shape[1]
    ids, positions, family, member = [], [], [], []  # one entry a packed position; member 0 is the prompt
    predict_at, targets, place = [], [], []
    prompt_end: dict[int, int] = {}
    members: dict[int, int] = {}
    order = batch.group.argsort(stable=True).tolist()
    for i in order:
        group, prompt = int(batch.group[i]), batch.prompt_ids[i]
        if group not in prompt_end:
            ids += prompt
            positions += range(len(prompt))
            family += [group] * len(prompt)
            member += [0] * len(prompt)
            prompt_end[group] = len(ids) - 1
        members[group] = members.get(group, 0) + 1
        length = int(batch.mask[i].sum())
        start = len(ids)
        inputs = batch.response_ids[i, : max(length - 1, 0)].tolist()
        ids += inputs
        positions += range(len(prompt), len(prompt) + len(inputs))
        family += [group] * len(inputs)
        member += [members[group]] * len(inputs)
        for t in wanted_BT[i].nonzero()[:, 0].tolist():
            predict_at.append(prompt_end[group] if t == 0 else start + t - 1)
            targets.append(int(batch.response_ids[i, t]))
            place.append(i * T + t)
    family_S, member_S = torch.tensor(family), torch.tensor(member)
    S = len(ids)
    sees = torch.ones(S, S, dtype=torch.bool).tril_()
    sees &= family_S[:, None] == family_S[None]
    sees &= (member_S[None] == 0) | (member_S[:, None] == member_S[None])
    return Inputs(
        input_ids=torch.tensor([ids]),
        attention_mask=sees[None, None],
        position_ids=torch.tensor([positions]),
        predict_at=torch.tensor(predict_at, dtype=torch.int64),
        targets=torch.tensor([targets], dtype=torch.int64),
        source=torch.arange(len(place)),
        place=torch.tensor(place, dtype=torch.int64),
        row=torch.tensor(place, dtype=torch.int64) // T,
    )


def _shared_prefix_positions(batch: Batch, rows: list[int]) -> int:
    prompts = {int(batch.group[i]): len(batch.prompt_ids[i]) for i in rows}
    return sum(prompts.values()) + sum(int(batch.mask[i].sum()) for i in rows)


padded = Layout("padded", _padded, _padded_positions)
shared_prefix = Layout("shared_prefix", _shared_prefix, _shared_prefix_positions)


def attends_by_mask(config: PretrainedConfig) -> bool:
    """Whether every layer is plain full attention, which a mask can confine; else the packed rows would mix."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    windowed = getattr(text, "sliding_window", None) is not None and getattr(text, "use_sliding_window", True)
    return not windowed and text.model_type in FULL_ATTENTION


# Decoders with plain rotary attention in every layer, which the tests compare with the padded layout.
FULL_ATTENTION = {"llama", "qwen2", "qwen3", "mistral", "olmo2", "smollm3", "phi3", "granite"}


LAYOUTS = {layout.name: layout for layout in (padded, shared_prefix)}


def choose(name: str | None, config: PretrainedConfig) -> str:
    """The name given, or that of the best layout for this model. Raises `ValueError` where the model cannot have it."""
    capable = attends_by_mask(config)
    if name == "shared_prefix" and not capable:
        kind = config.get_text_config().model_type
        raise ValueError(f"shared_prefix is not known to hold for {kind!r}; write padded, or leave it out")
    return name or ("shared_prefix" if capable else "padded")
