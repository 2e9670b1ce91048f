"""The record of a run's responses, `samples.jsonl`: one JSON object a line, each of which stands alone.

A line has the response, what was known of each of its tokens (the streams), and what each objective of its source
decided. What was not computed is absent, or null at the tokens that lack it: never 0. Any lines of a file, of which
each may lack any field but `group` and `response_ids`, are a record too: what other programs sampled, for example.
Fields and version are described in align/run/README.md.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, FiniteFloat, ValidationError

from align.ranges import Recorded

VERSION = 1  # of the lines that this version writes

Stream = list[FiniteFloat | None]  # a value a token; null where it was not computed

# Streams that are known before the update, by their names in the batch.
BEFORE = (
    *("sampler_logprob", "old_logprob", "ref_logprob", "guide_logprob"),
    *("entropy", "value", "reward_mask", "kl_mask"),
)
# Streams of the policy at the first update, for the tokens that it trains: {name: field of `Current`}.
AT_UPDATE = {
    "logprob": "logprob",
    "ref_kl": "ref_kl",
    "new_value": "value",
    "entropy": "entropy",
    "reward_mask": "reward_mask",
    "kl_mask": "kl_mask",
}

STREAMS = tuple(dict.fromkeys([*BEFORE, *AT_UPDATE]))

BEGINNING = re.compile(rb'\{"version": \d+, "step": (\d+),')


class ReplayError(ValueError):
    """A line of a record cannot be used; the message names file, line and field."""


class RecordedDecision(Recorded):
    """What an objective decided, as a line has it; `kept` and `advantage` stand in fields of the line itself."""

    name: str
    transforms: list[str]  # the chain, in order
    taken_by: list[int]  # of each token: place in the chain of the transform that took it; -1: it carries credit
    set_by: list[int]  # places of the transforms that set the advantages
    after: list[Stream]  # advantages after each of `set_by` but the last, whose are `advantage`
    weight: Stream  # what each token counts for in the objective's first loss of advantages
    token_reward: Stream | None = None
    returns: Stream | None = None
    state: dict[str, dict[str, Any]] | None = None  # {place of a transform: its memory before the step}


class RecordedTurn(Recorded):
    """A turn of a response: who speaks, and its tokens in `response_ids`."""

    role: str
    text: str = ""
    start: int = Field(ge=0)
    end: int  # exclusive
    reward: FiniteFloat | None = None


@dataclass(frozen=True)
class Decision:
    """What an objective decided on a response. Lists have a value a token."""

    name: str
    transforms: Sequence[str]
    kept: bool
    taken_by: Sequence[int]  # index into `transforms`; -1: the token carries credit
    after: Sequence[Sequence[float] | None]  # advantages after each transform; None where it left them as they were
    advantage: Sequence[float] | None  # those that the losses read; None where no transform set any, as with pairs
    weight: Sequence[float]


class RecordedRollout(Recorded):
    """One line. Fields that an objective does not need may be missing; unknown ones are ignored.

    Lists have one value a token, in nats where they are log-probabilities. `reward: null` marks a response that no
    reward function applied to: it takes no part.
    """

    version: int = 0  # 0: not written by a run, or by one of before the versions
    step: int | None = None
    source: str | None = None
    progress: float = 0.0
    batch_rows: int | None = None  # responses of the source's batch at this step, recorded or not
    group: str | int
    prompt: str | None = None
    prompt_ids: list[int] | None = None
    response: str | None = None
    response_ids: list[int]
    token_text: list[str] | None = None
    special: list[bool] | None = None
    mask: list[bool] | None = None  # of each token whether the policy chose it; None: all. Others were put in
    turns: list[RecordedTurn] | None = None
    reward: FiniteFloat | None = None
    rewards: dict[str, FiniteFloat | None] | None = None
    failed: dict[str, str] | None = None
    correct: bool | None = None
    truncated: bool | None = None
    chosen: bool | None = None
    sampler_logprob: Stream | None = None
    old_logprob: Stream | None = None
    logprob: Stream | None = None
    ref_logprob: Stream | None = None
    guide_logprob: Stream | None = None
    entropy: Stream | None = None
    ref_kl: Stream | None = None
    value: Stream | None = None
    new_value: Stream | None = None
    reward_mask: Stream | None = None
    kl_mask: Stream | None = None
    kept: list[bool] | None = None  # of each objective of the source
    advantage: list[Stream | None] | None = None  # likewise
    objectives: list[RecordedDecision] | None = None  # likewise

    @property
    def rated(self) -> bool:
        """Whether it is in the batch: a response without a reward, where others have one, takes no part."""
        return self.reward is not None or "reward" not in self.model_fields_set

    @property
    def streams(self) -> dict[str, Stream]:
        """{name: values} of the streams that the line has."""
        return {name: values for name in STREAMS if (values := getattr(self, name)) is not None}

    @property
    def decisions(self) -> list[Decision]:
        """What each objective decided; none of a response that took no part, and of lines without a version."""
        found = zip(self.objectives or (), self.kept or (), self.advantage or (), strict=False)
        return [_decision(recorded, kept, advantage) for recorded, kept, advantage in found]


def _decision(recorded: RecordedDecision, kept: bool, advantage: Stream | None) -> Decision:
    after: list[Stream | None] = [None] * len(recorded.transforms)
    for place, values in zip(recorded.set_by, [*recorded.after, advantage], strict=False):
        after[place] = values
    return Decision(recorded.name, recorded.transforms, kept, recorded.taken_by, after, advantage, recorded.weight)


def read(path: str | Path, steps: Container[int] | None = None) -> dict[str, RecordedRollout]:
    """{`file:line`: rollout} of a file, or of those of its lines that are of `steps`; other lines are not parsed.

    Raises `ReplayError` for the first line that is wrong, and where there is none.
    """
    rollouts = {}
    with open(path, "rb") as file:  # not splitlines, which also splits within a text, at U+2028
        for number, line in enumerate(file, 1):
            if not line.strip() or (steps is not None and (step := step_of(line)) is not None and step not in steps):
                continue
            rollout = _parsed(f"{path}:{number}", line)
            if steps is None or rollout.step in steps:
                rollouts[f"{path}:{number}"] = rollout
    if not rollouts:
        raise ReplayError(f"{path}: no rollouts; write one JSON object a line")
    return rollouts


def step_of(line: bytes) -> int | None:
    """The step of a line that a run wrote, from its beginning; None where it does not tell."""
    found = BEGINNING.match(line)
    return int(found[1]) if found else None


def steps_of(path: str | Path) -> list[int]:
    """The steps that a run's record has, ascending, from the beginnings of its lines."""
    with open(path, "rb") as file:
        return sorted({step for line in file if (step := step_of(line)) is not None})


def by_batch(rollouts: Mapping[str, RecordedRollout]) -> Iterator[dict[str, RecordedRollout]]:
    """Each step's batch of each source, in the order of the lines; lines without a version are one batch together."""
    batches: dict[tuple, dict[str, RecordedRollout]] = {}
    for place, rollout in rollouts.items():
        key = (rollout.step, rollout.source) if rollout.version else ()
        batches.setdefault(key, {})[place] = rollout
    yield from batches.values()


def _parsed(place: str, line: bytes) -> RecordedRollout:
    """The rollout of a line. Raises `ReplayError` naming the field where it is wrong."""
    try:
        rollout = RecordedRollout.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"])) or "line"
        raise ReplayError(f"{place}: {name}: {first['msg']}") from error
    if rollout.version > VERSION:
        raise ReplayError(
            f"{place}: version: {rollout.version} is newer than {VERSION}, which this align reads; update"
        )
    for name in (*STREAMS, "special", "token_text", "mask"):
        values = getattr(rollout, name)
        if values is not None and len(values) != len(rollout.response_ids):
            wanted = f"there are {len(rollout.response_ids)} response_ids"
            raise ReplayError(f"{place}: {name}: has {len(values)} values, but {wanted}")
    return rollout
