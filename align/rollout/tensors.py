"""Make a batch of what was sampled, or of the data's pairs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from align.batch import Batch, pad
from align.data.prompts import Pair, Prompt, Response, Turn, turn_numbers
from align.data.turns import turn_columns
from align.rollout.rollouts import Rollout
from align.rollout.token_text import token_texts

ON_DEMAND = ("token_text", "turn_reward", "turn_state")  # quantities that a batch has only where something reads them


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


def pairs_to_batch(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, progress: float = 0.0, reads: Collection[str] = ()
) -> Batch:
    """Make a batch of pairs: groups of two rows, the chosen response first, with rewards 1 and 0; `reads` as in
    `to_batch`."""
    rows = [(i, pair, answer) for i, pair in enumerate(pairs) for answer in pair.answers]
    answers = [answer for *_, answer in rows]
    first = torch.tensor([answer is pair.chosen for _, pair, answer in rows])
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
        truncated=torch.tensor([answer.truncated for answer in answers]),
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
