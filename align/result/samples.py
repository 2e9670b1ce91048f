"""The record of a run's responses, `samples.jsonl` and its older parts: one JSON object a line, each stands alone.

A line has the response, what was known of each of its tokens (the streams), and what each objective of its source
decided. What was not computed is absent, or null at the tokens that lack it: never 0. Any lines of a file, of which
each may lack any field but `group` and `response_ids`, are a record too: what other programs sampled, for example.
Fields and version are described in align/run/README.md.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, ValidationError

from align.data.prompts import POLICY, turn_numbers
from align.ranges import Recorded
from align.system import files, parts

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
# Those of the policy's head, where the reference's activations gave masks before the update as well.
LEARNED = {"reward_mask": "new_reward_mask", "kl_mask": "new_kl_mask"}

STREAMS = tuple(dict.fromkeys([*BEFORE, *AT_UPDATE, *LEARNED.values()]))

BEGINNING = re.compile(rb'\{"version": \d+, "step": (\d+),')
HEAD = re.compile(
    BEGINNING.pattern + rb' "source": ("(?:[^"\\]|\\.)*"), "group": "[^"]*", "progress": [^,]*, "batch_rows": (\d+),'
)
DECIDED = b'"objectives": ['  # within a text its quotation marks would have backslashes


class ReplayError(ValueError):
    """A line of a record cannot be used; the message names file, line and field."""


class RecordedDecision(Recorded):
    """What an objective decided, as a line has it; `kept` and `advantage` stand in fields of the line itself.

    Lists have null at tokens that the policy did not choose.
    """

    name: str
    transforms: list[str]  # the chain, in order
    taken_by: list[int | None]  # of each token: place in the chain of the transform that took it; -1: it carries credit
    set_by: list[int]  # places of the transforms that set the advantages
    after: list[Stream]  # advantages after each of `set_by` but the last, whose are `advantage`
    weight: Stream  # what each token counts for in the objective's first loss of advantages
    token_reward: Stream | None = None
    returns: Stream | None = None
    state: dict[str, dict[str, Any]] | None = None  # {place of a transform: its memory before the step}


@dataclass(frozen=True)
class Decision:
    """What an objective decided on a response. Lists have a value a token, None for those that others put in."""

    name: str
    transforms: Sequence[str]
    kept: bool
    taken_by: Sequence[int | None]  # index into `transforms`; -1: the token carries credit; None: not the policy's
    after: Sequence[Sequence[float] | None]  # advantages after each transform; None where it left them as they were
    advantage: Sequence[float] | None  # those that the losses read; None where no transform set any, as with pairs
    weight: Sequence[float]


class RecordedTurn(Recorded):
    """A stretch of a response that one side wrote: the policy (`assistant`), an environment or a tool."""

    role: str
    start: int = Field(ge=0)  # its first token in the response
    end: int  # behind its last one
    text: str = ""
    reward: FiniteFloat | None = None  # what it earned by itself
    state: int | None = Field(None, ge=-(2**63), lt=2**63)  # hash of what the policy saw before it


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
    turns: list[RecordedTurn] | None = None  # from the first token to the last; absent: the policy chose all in one
    turn: list[Annotated[int, Field(ge=-1)]] | None = None  # in place of `turns`: each token's turn, -1 of none
    episode: dict[str, Any] | None = None  # how it went in its environment
    token_text: list[str] | None = None
    special: list[bool] | None = None
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
    new_reward_mask: Stream | None = None
    new_kl_mask: Stream | None = None
    kept: list[bool] | None = None  # of each objective of the source
    advantage: list[Stream | None] | None = None  # likewise
    objectives: list[RecordedDecision] | None = None  # likewise

    @property
    def rated(self) -> bool:
        """Whether it is in the batch: a response without a reward, where others have one, takes no part."""
        return self.reward is not None or "reward" not in self.model_fields_set

    @property
    def turn_numbers(self) -> list[int]:
        """The number of the policy's turn of each token, from 0; -1 where the policy did not choose it."""
        return self.turn or turn_numbers(len(self.response_ids), self.turns or ())

    @property
    def mask(self) -> list[bool]:
        """Of each token whether the policy chose it."""
        return [number >= 0 for number in self.turn_numbers]

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
    """{`file:line`: rollout} of a file and its older parts, or of those lines that are of `steps`; other lines are not
    parsed, nor are parts read that have none.

    A run's last line that has no end yet, as where it was killed, is left out. Raises `ReplayError` for the first line
    that is wrong, and where there is none.
    """
    rollouts = {}
    there = parts.parts(Path(path)) if steps is None else parts.with_steps(Path(path), steps, step_of)
    for place, line in parts.lines(there or [Path(path)]):
        if not line.strip() or (steps is not None and (step := step_of(line)) is not None and step not in steps):
            continue
        try:
            rollout = _parsed(place, line)
        except ReplayError:
            written = BEGINNING.match(line) or any(rollout.version for rollout in rollouts.values())
            if written and not line.endswith(b"\n"):
                break
            raise
        if steps is None or rollout.step in steps:
            rollouts[place] = rollout
    if not rollouts:
        raise ReplayError(f"{path}: no rollouts; write one JSON object a line (run.samples: none records none)")
    return rollouts


def step_of(line: bytes) -> int | None:
    """The step of a line that a run wrote, from its beginning; None where it does not tell."""
    found = BEGINNING.match(line)
    return int(found[1]) if found else None


def steps_of(path: str | Path) -> list[int]:
    """The steps that a run's record has, ascending, from the beginnings of its lines, of its older parts too."""
    return sorted({step for _, line in parts.lines(parts.parts(Path(path))) if (step := step_of(line)) is not None})


def ends_whole(path: Path, step: int) -> set[str]:
    """The sources whose whole batch of this step stands at the end of a run's record, with decisions.

    Read from the end; no line before that step is.
    """
    count: Counter[tuple[str, int]] = Counter()
    decided = set()
    for _, line in files.backwards(path) if path.exists() else ():
        found = HEAD.match(line)
        if not found or int(found[1]) != step:
            break
        key = json.loads(found[2]), int(found[3])
        count[key] += 1
        decided |= {key} if DECIDED in line else set()
    return {source for source, rows in decided if count[source, rows] == rows}


def by_batch(rollouts: Mapping[str, RecordedRollout]) -> Iterator[dict[str, RecordedRollout]]:
    """Each step's batch of each source, in the order of the lines; lines without a version are one batch together."""
    batches: dict[tuple, dict[str, RecordedRollout]] = {}
    for place, rollout in rollouts.items():
        key = (rollout.step, rollout.source) if rollout.version else ()
        batches.setdefault(key, {})[place] = rollout
    yield from batches.values()


def is_part(batch: Mapping[str, RecordedRollout]) -> bool:
    """Whether lines say that responses of their batch are missing."""
    first = next(iter(batch.values()))
    return first.batch_rows is not None and len(batch) < first.batch_rows


def incomplete(rollouts: Mapping[str, RecordedRollout]) -> tuple[str, str] | None:
    """(`file:line`, what is missing) of the first batch that is not there as a whole; None where all are, as far as the
    lines tell."""
    for batch in by_batch(rollouts):
        place, first = next(iter(batch.items()))
        if is_part(batch):
            here = f"step {first.step}: {len(batch)} of {first.batch_rows} responses of the batch are here"
            why = "run.samples bounds them, or lines are missing"
            return place, f"{here} ({why}); what was taken over all of them, such as its loss, is not what the run had"
    return None


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
    for name in (*STREAMS, "turn", "special", "token_text"):
        values = getattr(rollout, name)
        if values is not None and len(values) != len(rollout.response_ids):
            wanted = f"there are {len(rollout.response_ids)} response_ids"
            raise ReplayError(f"{place}: {name}: has {len(values)} values, but {wanted}")
    _check_turns(place, rollout)
    return rollout


def _check_turns(place: str, rollout: RecordedRollout) -> None:
    """Raise `ReplayError` unless turns follow each other over all tokens of the response, and agree with `turn`."""
    end = 0
    for number, turn in enumerate(rollout.turns or ()):
        if turn.start != end or turn.end < turn.start:
            raise ReplayError(f"{place}: turns.{number}: goes from {turn.start} to {turn.end}, and begins at {end}")
        end = turn.end
    size = len(rollout.response_ids)
    if max(rollout.turn or (), default=0) >= max(size, 1):
        raise ReplayError(f"{place}: turn: has a turn {max(rollout.turn)} of {size} tokens; count turns from 0")
    if rollout.turns and end != size:
        raise ReplayError(f"{place}: turns: end at {end}, but there are {size} response_ids")
    if rollout.turns and rollout.turn and rollout.turn != turn_numbers(size, rollout.turns):
        raise ReplayError(f"{place}: turn: does not number the turns of {POLICY}; leave it out")
