"""Make a batch of what was sampled, or of the data's pairs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from align.batch import Batch, pad
from align.data.bank import Bank
from align.data.prompts import Pair, Prompt, Response, Turn, turn_numbers
from align.data.turns import turn_columns
from align.ranks import exchange
from align.rollout.rollouts import Known, Rollout
from align.rollout.token_text import token_texts

ON_DEMAND = ("token_text", "turn_reward", "turn_state")  # quantities that a batch has only where something reads them

ALL = slice(None)


def to_batch(
    rollouts: Sequence[Rollout],
    tokenizer: PreTrainedTokenizerBase,
    progress: float = 0.0,
    reads: Collection[str] = (),
) -> Batch:
    """Make a batch of rollouts that have a reward; `progress` in [0, 1] is the part of the schedules that is done.

    Of `ON_DEMAND` it has what is in `reads`, the quantities that the objectives read.

    Of none it is one row without tokens that takes no part: each transform and loss finds a batch, and nothing in it.
    """
    if not rollouts:
        nothing = Rollout(0, 0, Prompt([0], "", "", {}), Response([], [], False), "", {}, 0.0, False)
        batch = to_batch([nothing], tokenizer, progress, reads)
        return replace(batch, kept=torch.zeros_like(batch.kept))
    return _batch(
        [r.group for r in rollouts],
        [r.response.ids for r in rollouts],
        [r.prompt.ids for r in rollouts],
        tokenizer,
        reads,
        progress=progress,
        reward=torch.tensor([r.reward for r in rollouts]),
        correct=torch.tensor([r.correct for r in rollouts]),
        truncated=torch.tensor([r.response.truncated for r in rollouts]),
        sampler_logprob=pad([r.response.logprobs for r in rollouts], torch.float32),
        turns=[r.response.turns for r in rollouts],
    )


def to_part(
    known: Sequence[Known], tokenizer: PreTrainedTokenizerBase, progress: float, reads: Collection[str]
) -> Batch:
    """Make this rank's part of the batch of rollouts that have a reward, from what it knows of those of all ranks."""
    rated = [one for one in known if one.reward is not None]
    if exchange.place()[1] == 1 or not rated:
        return to_batch(rated, tokenizer, progress, reads)
    rows = [i for i, one in enumerate(rated) if isinstance(one, Rollout)]
    batch = to_batch([rated[i] for i in rows], tokenizer, progress, reads)
    batch = batch if rows else batch.rows(torch.zeros(0, dtype=torch.int64))
    return _part(batch, rows, [one.response.size for one in rated])


def _part(batch: Batch, rows: Sequence[int], sizes: Sequence[int]) -> Batch:
    """A batch of these rows of the one of all ranks, as wide as that, whose responses have these numbers of tokens: a
    sum over a row's tokens has the same bits then."""
    more = max([1, *sizes]) - batch.mask.shape[1]
    wider = {
        name: F.pad(value, (0, more), value=-1 if name == "turn" else 0)
        for name, value in exchange.columns_of(batch).items()
        if value.dim() == 2
    }
    return replace(batch, row=torch.tensor(rows, dtype=torch.int64), **wider)


def pairs_to_part(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, progress: float, reads: Collection[str], bank: Bank
) -> Batch:
    """Make this rank's part of a batch of pairs, with what the bank has of it."""
    rank, count = exchange.place()
    batch = bank.fill(pairs_to_batch(pairs, tokenizer, progress, reads, slice(rank, None, count)))
    if count == 1:
        return batch
    answers = [(i, answer) for i, pair in enumerate(pairs) for answer in pair.answers]
    rows = [row for row, (i, _) in enumerate(answers) if i % count == rank]
    return _part(batch, rows, [len(answer.ids) for _, answer in answers])


def pairs_to_batch(
    pairs: Sequence[Pair],
    tokenizer: PreTrainedTokenizerBase,
    progress: float = 0.0,
    reads: Collection[str] = (),
    which: slice = ALL,
) -> Batch:
    """Make a batch of some of the pairs: groups of two rows, the chosen response first, with rewards 1 and 0; `reads`
    as in `to_batch`."""
    rows = [(i, pair, answer) for i, pair in [*enumerate(pairs)][which] for answer in pair.answers]
    answers = [answer for *_, answer in rows]
    first = torch.tensor([answer is pair.chosen for _, pair, answer in rows], dtype=torch.bool)
    return _batch(
        [i for i, *_ in rows],
        [answer.ids for answer in answers],
        [pair.ids for _, pair, _ in rows],
        tokenizer,
        reads,
        progress=progress,
        reward=first.float(),
        correct=first,
        chosen=first,
        truncated=torch.tensor([answer.truncated for answer in answers], dtype=torch.bool),
        turns=[answer.turns for answer in answers],
    )


def _batch(
    group: list[int],
    response_ids: list[list[int]],
    prompt_ids: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    reads: Collection[str],
    turns: list[Sequence[Turn]],
    **rest,
) -> Batch:
    numbers = None
    if any(turns):
        numbers = [turn_numbers(len(ids), of_row) for ids, of_row in zip(response_ids, turns, strict=True)]
    batch = Batch.of(group, response_ids, prompt_ids=prompt_ids, turns=numbers, **rest)
    special = torch.isin(batch.response_ids, torch.tensor(tokenizer.all_special_ids, dtype=torch.int64))
    wanted = {}
    if "token_text" in reads:
        wanted["token_text"] = token_texts(response_ids, tokenizer)
    if {"turn_reward", "turn_state"} & set(reads):
        wanted |= turn_columns(response_ids, numbers, turns)
    return replace(batch, special=special & batch.present, **wanted)
