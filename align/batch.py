"""One step's responses as tensors. Everything that assigns credit reads and returns a `Batch`.

Letters in names: B rows (responses), T response tokens (padded on the right), Q groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


class MissingQuantity(LookupError):
    """Raised where a transform or a loss needs a quantity that the batch does not carry."""

    def __init__(self, name: str, reader: str):
        super().__init__(f"{reader} needs {name!r}, which this batch does not carry")
        self.name, self.reader = name, reader


@dataclass(frozen=True)
class Batch:
    """The responses of one step: those of this rank's groups, or where `row` is None those of all ranks.

    `None` means that nothing needed the quantity yet: objectives list what they need, and the loop
    computes it for the rows that are still kept. Values where `mask` is False carry no meaning.
    """

    group: Tensor  # [B] int64, the same number for the responses of one prompt; rows of a group need not be neighbours
    response_ids: Tensor  # [B,T] int64
    present: Tensor  # [B,T] bool, tokens of the response: the model reads them; the first ones of a row
    mask: Tensor  # [B,T] bool, those that the policy chose, its end token included; the rest others put in
    turn: Tensor  # [B,T] int64, number in 0.. of the turn in which the policy chose the token; -1 where it did not
    kept: Tensor  # [B] bool, rows that take part; a transform that drops rows clears it and leaves them where they are
    selected: Tensor  # [B,T] bool, tokens that take part
    weight: Tensor  # [B,T] float, what a token counts for (importance weights); no gradient
    special: Tensor  # [B,T] bool, special tokens of the tokenizer; nowhere where no tokenizer is involved
    row: Tensor | None = None  # [B] int64, its number in the batch of all ranks; None where each rank has that
    progress: float = 0.0  # fraction of optim.schedule_steps that is done, in [0, 1]
    prompt_ids: Sequence[Sequence[int]] = ()  # B prompts, unpadded; empty where no model is involved
    token_text: Sequence[Sequence[str]] | None = None  # B responses, the text of each token

    reward: Tensor | None = None  # [B] float
    correct: Tensor | None = None  # [B] bool
    truncated: Tensor | None = None  # [B] bool, cut at the token limit
    turn_reward: Tensor | None = None  # [B,T] float, the part of `reward` that a turn earned, on its last chosen token
    turn_state: Tensor | None = None  # [B,T] int64, hash of what the policy saw, on a turn's first chosen token
    chosen: Tensor | None = None  # [B] bool, the preferred response of a pair; a pair is a group of two kept rows
    token_reward: Tensor | None = None  # [B,T] float, the reward of each token
    returns: Tensor | None = None  # [B,T] float, what the value head learns to predict
    advantage: Tensor | None = None  # [B,T] float, the credit of each token
    sampler_logprob: Tensor | None = None  # [B,T] nats, from the engine that sampled, at the sampling temperature
    old_logprob: Tensor | None = None  # [B,T] nats, the denominator of the ratio
    ref_logprob: Tensor | None = None  # [B,T] nats, from the reference
    guide_logprob: Tensor | None = None  # [B,T] nats, from the guide
    entropy: Tensor | None = None  # [B,T] nats, of the policy before the update
    value: Tensor | None = None  # [B,T] of the value head before the update, at the prefix of each token
    reward_mask: Tensor | None = None  # [B,T] in [0, 1], from the reference's activations at the prefix of each token
    kl_mask: Tensor | None = None  # [B,T] in [0, 1], likewise

    @staticmethod
    def of(
        group: Sequence[int],
        response_ids: Sequence[Sequence[int]],
        dtype=torch.float32,
        turns: Sequence[Sequence[int]] | None = None,
        **rest,
    ) -> Batch:
        """A batch of ragged responses in which every row takes part, and every token that the policy chose.

        `turns` has the number of each token's turn, -1 where the policy did not choose it; without it every response
        is one turn.
        """
        ids = pad(response_ids, torch.int64)
        size = torch.tensor([len(row) for row in response_ids], dtype=torch.int64)
        present = torch.arange(ids.shape[1]) < size[:, None]
        turn = torch.zeros_like(ids) if turns is None else pad(turns, torch.int64)
        turn = torch.where(present, turn, -1)
        mask = turn >= 0
        return Batch(
            group=torch.tensor(group, dtype=torch.int64),
            response_ids=ids,
            present=present,
            mask=mask,
            turn=turn,
            kept=torch.ones(len(response_ids), dtype=torch.bool),
            selected=mask.clone(),
            weight=mask.to(dtype),
            **{"special": torch.zeros_like(mask), **rest},
        )

    @property
    def active(self) -> Tensor:
        """[B,T] bool: tokens that the policy chose and no transform has taken out."""
        return self.mask & self.selected & self.kept[:, None]

    @property
    def size(self) -> Tensor:
        """[B] int64: tokens of each response, whoever put them there."""
        return self.present.sum(1)

    @property
    def length(self) -> Tensor:
        """[B] int64: tokens of each response that the policy chose."""
        return self.mask.sum(1)

    def need(self, name: str, reader: str) -> Tensor:
        """The quantity `name`. Raises `MissingQuantity`, which names `reader`, where the batch does not carry it."""
        value = getattr(self, name)
        if value is None:
            raise MissingQuantity(name, reader)
        return value

    def rows(self, index: Tensor) -> Batch:
        """The rows at `index` ([R] int64), as a batch of their own."""
        changed = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in changed.items():
            if isinstance(value, Tensor):
                changed[name] = value[index]
            elif isinstance(value, Sequence) and value:
                changed[name] = [value[i] for i in index.tolist()]
        return replace(self, **changed)


def pad(rows: Sequence[Sequence], dtype: torch.dtype) -> Tensor:
    """[B,T] tensor of ragged rows, filled with zeros on the right; T is the longest row, at least 1."""
    out = torch.zeros(len(rows), max([1, *map(len, rows)]), dtype=dtype)
    lines = out.numpy()  # the same memory: it takes a list three times as fast
    for i, row in enumerate(rows):
        lines[i, : len(row)] = row
    return out
