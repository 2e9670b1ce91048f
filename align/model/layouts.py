"""Layouts turn rows into model input: padded side by side, or packed behind their shared prompt.

Both give the same log-probabilities. `padded` works for every model and is the oracle; `shared_prefix`
computes the prompt of a group once, forward and backward, and needs a model that attends by mask alone. On a GPU it
fills its last block, since kernels for lengths of whole blocks serve all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from align import ops
from align.batch import Batch
from align.model.attention import Packing
from align.model.flex import BLOCK, filled


@dataclass(frozen=True)
class Inputs:
    """R sequences of S positions, N of which predict a target token."""

    input_ids: Tensor  # [R,S]
    attention: Tensor | Packing  # [R,S] 1 where there is a token; of a packed sequence its `Packing`
    position_ids: Tensor  # [R,S]
    predict_at: Tensor  # [N] positions, the same for all sequences
    targets: Tensor  # [R,N] token ids
    logit_index: Tensor  # [K] flat index into R*N of each wanted token
    token_index: Tensor  # [K] flat index into B*T of the same token
    row: Tensor  # [K] row of the batch that it belongs to

    def scatter(self, value_RN: Tensor, shape: torch.Size) -> Tensor:
        """Put the wanted ones of [R,N] values into [B,T], 0 elsewhere; differentiable."""
        out = torch.zeros(shape.numel(), dtype=value_RN.dtype)
        wanted = value_RN.flatten()[self.logit_index.to(value_RN.device)].cpu()
        return out.index_put((self.token_index,), wanted).view(shape)


@dataclass(frozen=True)
class Row:
    """The tokens of a row that a pass needs."""

    index: int  # in the batch
    group: int
    prompt: int  # tokens
    response: int  # tokens up to the last one wanted; those behind it are not computed


@dataclass(frozen=True)
class Load:
    """The cost of some rows in one forward pass."""

    rows: int = 0
    group: int | None = None  # of the last row
    prompt: int = 0  # tokens of the longest
    response: int = 0
    positions: int = 0  # that the layers compute
    filling: int = 0  # of these: those that only fill the last block
    attended: int = 0  # pairs of positions of which one attends to the other


@dataclass(frozen=True)
class Layout:
    """A way to turn rows into input, and its cost."""

    name: str
    inputs: Callable[[Batch, Tensor], Inputs]  # (rows, wanted [B,T]) -> input
    add: Callable[[Load, Row], Load]  # the load with one row more; rows of a group come one after the other


def rows(batch: Batch, wanted_BT: Tensor) -> list[Row]:
    """Describe each row of the batch for a pass that reads the tokens marked."""
    facts = zip(batch.group.tolist(), ops.up_to_last(wanted_BT).tolist(), strict=True)
    return [Row(i, group, len(batch.prompt_ids[i]), last) for i, (group, last) in enumerate(facts)]


def _padded(batch: Batch, wanted_BT: Tensor) -> Inputs:
    """Pad prompts on the left and responses on the right, to the longest of these rows; every position of a response
    predicts a token."""
    B, T = len(batch.mask), max(1, int(ops.up_to_last(wanted_BT).max()))
    P = max(len(prompt) for prompt in batch.prompt_ids)
    input_ids = torch.zeros(B, P + T, dtype=torch.int64)
    attention = torch.zeros(B, P + T, dtype=torch.int64)
    for i, prompt in enumerate(batch.prompt_ids):
        input_ids[i, P - len(prompt) : P] = torch.tensor(prompt)
        attention[i, P - len(prompt) : P] = 1
    input_ids[:, P:] = torch.where(batch.present, batch.response_ids, 0)[:, :T]
    attention[:, P:] = batch.present[:, :T]
    return Inputs(
        input_ids=input_ids,
        attention=attention,
        position_ids=(attention.cumsum(1) - 1).clamp(min=0),
        predict_at=torch.arange(P - 1, P + T - 1),
        targets=batch.response_ids[:, :T],
        logit_index=wanted_BT[:, :T].flatten().nonzero()[:, 0],
        token_index=wanted_BT.flatten().nonzero()[:, 0],
        row=wanted_BT.nonzero()[:, 0],
    )


def _add_padded(load: Load, row: Row) -> Load:
    count, prompt, response = load.rows + 1, max(load.prompt, row.prompt), max(load.response, row.response, 1)
    width = prompt + response
    return Load(count, row.group, prompt, response, count * width, 0, count * width**2)


def _shared_prefix(batch: Batch, wanted_BT: Tensor, whole: Callable[[int], int]) -> Inputs:
    """Pack one sequence: each group's prompt, then its responses, each of which attends to the prompt and itself only.

    Positions restart behind the prompt. A response's last wanted token is no input: nothing is predicted from it. What
    `whole` makes the sequence longer is one more prompt, without responses.
    """
    T, ends = batch.mask.shape[1], ops.up_to_last(wanted_BT).tolist()
    ids: list[int] = []
    positions: list[int] = []
    groups: dict[int, tuple[int, list[int]]] = {}  # group -> (end of its prompt, tokens of each response)
    predict_at, targets, token_index = [], [], []
    for i in batch.group.argsort(stable=True).tolist():
        group, prompt, response = int(batch.group[i]), batch.prompt_ids[i], batch.response_ids[i].tolist()
        if group not in groups:
            ids += prompt
            positions += range(len(prompt))
            groups[group] = (len(ids) - 1, [])
        prompt_end, lengths = groups[group]
        start, length = len(ids), max(ends[i] - 1, 0)
        if length:
            lengths.append(length)
        ids += response[:length]
        positions += range(len(prompt), len(prompt) + length)
        for t in wanted_BT[i].nonzero()[:, 0].tolist():
            predict_at.append(prompt_end if t == 0 else start + t - 1)
            targets.append(response[t])
            token_index.append(i * T + t)
    prompts = {int(group): len(prompt) for group, prompt in zip(batch.group, batch.prompt_ids, strict=True)}
    parts = [(prompts[group], tuple(lengths)) for group, (_, lengths) in groups.items()]
    filling = whole(len(ids)) - len(ids)
    return Inputs(
        input_ids=torch.tensor([ids + [0] * filling]),
        attention=Packing(tuple(parts + [(filling, ())] * (filling > 0))),
        position_ids=torch.tensor([positions + list(range(filling))]),
        predict_at=torch.tensor(predict_at, dtype=torch.int64),
        targets=torch.tensor([targets], dtype=torch.int64),
        logit_index=torch.arange(len(token_index)),
        token_index=torch.tensor(token_index, dtype=torch.int64),
        row=torch.tensor(token_index, dtype=torch.int64) // T,
    )


def _add_shared_prefix(
    load: Load, row: Row, whole: Callable[[int], int], pairs: Callable[[int, int, int], int]
) -> Load:
    prompt = 0 if load.rows and row.group == load.group else row.prompt
    taken = load.positions - load.filling + prompt + max(row.response - 1, 0)
    return Load(
        rows=load.rows + 1,
        group=row.group,
        prompt=max(load.prompt, row.prompt),
        response=max(load.response, row.response),
        positions=whole(taken),
        filling=whole(taken) - taken,
        attended=load.attended + pairs(prompt, row.prompt, row.response),
    )


def _pairs_of_parts(new_prompt: int, prompt: int, response: int) -> int:
    """Pairs of a row that attention on the parts computes: a prompt's triangle, a response's square and its prompt."""
    return new_prompt**2 // 2 + response * (prompt + response)


def _pairs_of_blocks(new_prompt: int, prompt: int, response: int) -> int:
    """About the pairs in the blocks of flex attention: of a triangle those on the diagonal whole, and what a part
    shares with its neighbours' blocks."""
    return new_prompt * (new_prompt // 2 + BLOCK) + response * (prompt + response // 2 + 2 * BLOCK)


padded = Layout("padded", _padded, _add_padded)

shared_prefix = Layout(
    "shared_prefix",
    partial(_shared_prefix, whole=int),
    partial(_add_shared_prefix, whole=int, pairs=_pairs_of_parts),
)

shared_prefix_in_blocks = Layout(
    "shared_prefix",
    partial(_shared_prefix, whole=filled),
    partial(_add_shared_prefix, whole=filled, pairs=_pairs_of_blocks),
)


def layout_on(device: str, name: str) -> Layout:
    """The layout of this name for a kind of device, such as cpu or cuda."""
    packed = shared_prefix_in_blocks if device == "cuda" else shared_prefix
    return {layout.name: layout for layout in (padded, packed)}[name]


def choose(name: str | None, config: PretrainedConfig) -> str:
    """Return the name given, or that of the best layout for this model. Raises `ValueError` where it cannot have it."""
    reason = why_not_packed(config)
    if name == "shared_prefix" and reason:
        raise ValueError(f"{config.get_text_config().model_type} {reason}, so rows cannot be packed; write padded")
    return name or ("padded" if reason else "shared_prefix")


def why_not_packed(config: PretrainedConfig) -> str | None:
    """Why rows of this model cannot share a sequence, as far as its configuration tells; None where it finds nothing.

    `learner.support.packs` finds out the rest by running the model.
    """
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None and set(kinds) != {"full_attention"}:
        return f"has layers of {', '.join(sorted(set(kinds) - {'full_attention'}))}"
    windowed = getattr(text, "sliding_window", None) is not None and getattr(text, "use_sliding_window", True)
    if kinds is None and windowed:
        return f"attends to a window of {text.sliding_window} tokens"
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if known is None or not known._supports_attention_backend:
        return "has attention that cannot be exchanged"
    return None
