"""Sampling and scoring one step's responses, and gathering them into a batch that is the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from align import scoring
from align.batch import Batch, pad
from align.calls import Failure
from align.config import Experiment
from align.data import Pair, Prompt
from align.generator import Generator, Response
from align.recipe import RewardLimits
from align.redact import scrub
from align.workers import Worker


@dataclass(frozen=True)
class Rollout:
    """A scored response. Order is (group, index), whatever rank it came from."""

    group: int
    index: int
    prompt: Prompt
    response: Response
    text: str
    rewards: dict[str, float | None]
    reward: float | None  # None: none applied, or one failed; the response takes no part
    correct: bool
    failed: dict[str, str] = field(default_factory=dict)  # {reward: why it gave no value}


@dataclass(frozen=True)
class Rank:
    """This process among the others."""

    index: int
    count: int


def seed_of(*numbers: int) -> int:
    """A seed for one purpose, step and rank; near inputs give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def sample(
    prompts: Sequence[Prompt],
    generator: Generator,
    rank: Rank,
    *,
    n: int,
    temperature: float,
    max_tokens: int,
    seed: int,
) -> list[tuple[int, int, Prompt, Response]]:
    """(group, index, prompt, response) of this rank's share of the prompts."""
    mine = list(range(rank.index, len(prompts), rank.count))
    ids = [prompts[i].ids for i in mine]
    outputs = generator.generate(ids, n=n, temperature=temperature, max_tokens=max_tokens, seed=seed)
    return [(i, j, prompts[i], r) for i, responses in zip(mine, outputs, strict=True) for j, r in enumerate(responses)]


def score(
    sampled: list[tuple],
    workers: Sequence[Worker],
    experiment: Experiment,
    tokenizer: PreTrainedTokenizerBase,
    everywhere: int,
) -> list[Rollout]:
    """This rank's responses with their rewards, where all ranks have so many rows. Raises `RewardError`."""
    texts = tokenizer.batch_decode([response.ids for *_, response in sampled], skip_special_tokens=True)
    prompts, responses = [s[2] for s in sampled], [s[3] for s in sampled]
    values = scoring.score(workers, prompts, responses, texts, everywhere)
    totals = scoring.combine(experiment.rewards, values)
    solved, rollouts = experiment.correct, []
    for i, (group, index, prompt, response) in enumerate(sampled):
        row = {name: column[i] for name, column in values.items()}
        why = {name: value.why for name, value in row.items() if isinstance(value, Failure)}
        failed = {name: scrub(reason, experiment.source.data) for name, reason in why.items()}
        components = {name: None if name in failed else value for name, value in row.items()}
        decides = components[solved.reward]
        correct = decides is not None and decides >= solved.at_least
        rollouts.append(Rollout(group, index, prompt, response, texts[i], components, totals[i], correct, failed))
    return rollouts


def gather(rollouts: list[Rollout]) -> list[Rollout]:
    """The rollouts of all ranks, in the same order on each."""
    return sorted(gather_object(rollouts), key=lambda r: (r.group, r.index))


def check_failed(rollouts: Sequence[Rollout], limits: RewardLimits) -> None:
    """Raises `RewardError` where a reward failed on too many rows of all ranks."""
    for name in rollouts[0].rewards if rollouts else ():
        failed = [r for r in rollouts if name in r.failed]
        if len(failed) > limits.max_failed * len(rollouts):
            example = f"on the response {failed[0].text[:200]!r}: {failed[0].failed[name]}"
            raise scoring.too_many(name, len(failed), len(rollouts), limits, example)


def mixed(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts of groups that have both correct and wrong responses; one whose reward failed is neither."""
    outcomes: dict[int, set[bool]] = {rollout.group: set() for rollout in rollouts}
    for rollout in rollouts:
        if not rollout.failed:
            outcomes[rollout.group].add(rollout.correct)
    return [rollout for rollout in rollouts if len(outcomes[rollout.group]) == 2]


def to_batch(rollouts: Sequence[Rollout], tokenizer: PreTrainedTokenizerBase, progress: float = 0.0) -> Batch:
    """Rollouts that have a reward, as tensors; `progress` is the share of the schedules' steps that are done."""
    return _batch(
        [r.group for r in rollouts],
        [r.response.ids for r in rollouts],
        [r.prompt.ids for r in rollouts],
        tokenizer,
        progress=progress,
        reward=torch.tensor([r.reward for r in rollouts]),
        correct=torch.tensor([r.correct for r in rollouts]),
        truncated=torch.tensor([r.response.truncated for r in rollouts]),
        sampler_logprob=pad([r.response.logprobs for r in rollouts], torch.float32),
    )


def pairs_to_batch(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, progress: float = 0.0) -> Batch:
    """Pairs as groups of two rows, the chosen response first, with rewards 1 and 0."""
    rows = [(i, pair, answer) for i, pair in enumerate(pairs) for answer in pair.answers]
    answers = [answer for *_, answer in rows]
    first = torch.tensor([answer is pair.chosen for _, pair, answer in rows])
    return _batch(
        [i for i, *_ in rows],
        [answer.ids for answer in answers],
        [pair.ids for _, pair, _ in rows],
        tokenizer,
        progress=progress,
        reward=first.float(),
        correct=first,
        chosen=first,
        truncated=torch.tensor([answer.truncated for answer in answers]),
    )


def _batch(
    group: list[int],
    response_ids: list[list[int]],
    prompt_ids: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    **rest,
) -> Batch:
    special = set(tokenizer.all_special_ids)
    text = {token: tokenizer.decode([token]) for ids in response_ids for token in ids}
    return Batch.of(
        group,
        response_ids,
        prompt_ids=prompt_ids,
        special=pad([[token in special for token in ids] for ids in response_ids], torch.bool),
        token_text=[[text[token] for token in ids] for ids in response_ids],
        **rest,
    )
