"""Replay recorded rollouts through objectives, without any model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from align.batch import Batch, pad
from align.config.compose import GIVERS
from align.config.experiment import Experiment
from align.config.problems import distinct
from align.credit import Credited, assign
from align.data.turns import turn_columns
from align.losses.loss import Current, summarised
from align.losses.pairs import PairError
from align.objectives.objective import Objective
from align.result.samples import LEARNED, RecordedRollout, ReplayError, by_batch

ROW_FIELDS = {"reward": None, "correct": torch.bool, "truncated": torch.bool, "chosen": torch.bool}

INSTEAD = ["logprob", "old_logprob", "sampler_logprob"]  # fields of the policy now, where it may be the one before


@dataclass(frozen=True)
class Result:
    """What an objective makes of a batch of the record."""

    credited: Credited  # of a loss of pairs with the advantages that its gradient implies
    carrying: Tensor  # [B,T] bool: tokens that carry gradient: no transform took them, and they are not clipped
    summary: dict[str, Any]  # loss and counts, as `align credit` prints them


@dataclass(frozen=True)
class Replayed:
    """A batch of the record, and what the objectives that learn from it make of it."""

    rollouts: dict[str, RecordedRollout]  # {`file:line`: rollout}, those that take no part among them
    row_of: dict[str, int]  # {`file:line`: row of the batch}
    results: list[Result]  # of each objective


def replay(experiment: Experiment, rollouts: dict[str, RecordedRollout]) -> Iterator[Replayed]:
    """Replay each batch of a record, in order: memories go on from one to the next. Raises `ReplayError`."""
    last: dict[str | None, int | None] = {}  # {source: its last step, where that was there as a whole}
    for batch in by_batch(rollouts):
        place, first = next(iter(batch.items()))
        objectives = _learning_from(experiment, place, first)
        _check_groups(objectives, batch)
        rated = {place: rollout for place, rollout in batch.items() if rollout.rated}
        if first.version:
            follows = first.step is not None and last.get(first.source) == first.step - 1
            _remember(objectives, place, first, next(iter(rated.values()), first), follows)
            last[first.source] = first.step if len(batch) == first.batch_rows else None
        recorded = _Recorded(rated, experiment.recipe.sampling.old_logprob)
        row_of = {place: row for row, place in enumerate(rated)}
        yield Replayed(batch, row_of, [_replay(objective, recorded) for objective in objectives])


def _learning_from(experiment: Experiment, place: str, first: RecordedRollout) -> list[Objective]:
    """The objectives that learn from the source of a batch. Raises `ReplayError` where none does."""
    if not first.version:
        return list(experiment.objectives)
    if found := [o for o in experiment.objectives if o.data in (None, first.source)]:
        return found
    theirs = ", ".join(sorted({repr(o.data) for o in experiment.objectives}))
    raise ReplayError(f"{place}: source: {first.source!r} is none of those that the objectives read: {theirs}")


def _remember(
    objectives: Sequence[Objective], place: str, line: RecordedRollout, first: RecordedRollout, follows: bool
) -> None:
    """Give transforms the memory that they had before a batch, where the run had these objectives.

    `first` is the batch's first response with a decision; `follows`: the step before was replayed as a whole.
    """
    for objective, decided in zip(objectives, first.objectives or (), strict=False):
        chain = [transform.name for transform in objective.chain]
        if (decided.name, decided.transforms) != (objective.name, chain):
            continue  # what the run had was another one
        for number, transform in enumerate(objective.chain):
            if transform.state and (state := (decided.state or {}).get(str(number))):
                transform.state.load_state_dict(state)
            elif transform.state and not follows:
                what = f"step {line.step}: {transform.name} remembers the steps before, and this line does not say what"
                raise ReplayError(
                    f"{place}: {what}; give the lines from the last one with `state` on, all of each step"
                )


def _check_groups(objectives: Sequence[Objective], rollouts: dict[str, RecordedRollout]) -> None:
    """Raise `ReplayError` where the smallest group is too small for a transform."""
    sizes = Counter(rollout.group for rollout in rollouts.values())
    group, size = min(sizes.items(), key=lambda item: item[1])
    for objective in objectives:
        for transform in objective.chain:
            try:
                transform.check(size)
            except ValueError as error:
                place = next(place for place, rollout in rollouts.items() if rollout.group == group)
                raise ReplayError(f"{place}: group {group!r}: {transform.name}: {error}") from error


class _Recorded:
    """The recorded rollouts as a batch, and an `annotate` that takes quantities from them instead of from a model.

    What a run recorded is computed in float32, as it was there; all else in float64.
    """

    def __init__(self, rollouts: dict[str, RecordedRollout], old_from: str):
        self.rollouts, self.old_from = rollouts, old_from
        rows = list(rollouts.values())
        self.of_a_run = any(rollout.version for rollout in rows)
        self.dtype = torch.float32 if self.of_a_run else torch.float64
        number: dict[str | int, int] = {}
        groups = [number.setdefault(r.group, len(number)) for r in rows]
        special = [r.special or [False] * len(r.response_ids) for r in rows]
        prompts = [r.prompt_ids or [] for r in rows]
        progress = rows[0].progress if rows else 0.0
        rest = {"special": pad(special, torch.bool), "prompt_ids": prompts, "progress": progress}
        responses, numbers = [r.response_ids for r in rows], [r.turn_numbers for r in rows]
        rest |= {"turns": numbers, **turn_columns(responses, numbers, [r.turns or () for r in rows])}
        self.batch = Batch.of(groups, responses, dtype=self.dtype, **rest)

    def annotate(self, batch: Batch, names: Sequence[str], rows_B: Tensor, reader: str) -> Batch:
        """Fill the quantities named, as `align.credit.Annotate` says. Raises `ReplayError` for a missing one."""
        for name in names:
            if name not in GIVERS and getattr(batch, name) is None:
                batch = replace(batch, **{name: self.quantity(name, rows_B, reader)})
        return batch

    def quantity(self, name: str, rows_B: Tensor, reader: str) -> Tensor:
        """[B] or [B,T] numbers, bool, or texts; zeros in rows that lack the quantity and are not marked in `rows_B`."""
        fields = [name]
        if name == "old_logprob":
            # before the first update the old log-probabilities are the current ones
            fields = ["sampler_logprob"] if self.old_from == "sampler" else ["old_logprob", "logprob"]
            if self.of_a_run:  # and those of the sampler, for tokens that the update did not read
                fields = list(dict.fromkeys([*fields, "sampler_logprob"]))
        return self._read(name, fields, rows_B, rows_B[:, None] & self.batch.mask, reader)

    def current(self, credited: Credited) -> Current:
        """The policy's current quantities, as leaves of the graph; where `new_value` is missing it is `value`.

        Where no rollout records the policy now, it is the one before the update, as at a step's first update.
        """
        names = {name for term in credited.terms for name in term.loss.reads_current}
        fields = {name: ["new_value", "value"] if name == "value" else [name] for name in ("logprob", *names)}
        for name, learned in LEARNED.items():
            if name in fields and any(getattr(rollout, learned) is not None for rollout in self.rollouts.values()):
                fields[name] = [learned]
        if self.of_a_run or all(rollout.logprob is None for rollout in self.rollouts.values()):
            fields["logprob"] = INSTEAD
        rows_B, tokens_BT = credited.trained.any(1), credited.trained
        read = {n: self._read(n, f, rows_B, tokens_BT, "the loss") for n, f in fields.items()}
        return Current(**{name: value.requires_grad_() for name, value in read.items()})

    def _read(self, name: str, fields: list[str], rows_B: Tensor, tokens_BT: Tensor, reader: str) -> Tensor:
        """The quantity `name`, of each rollout or token from the first of `fields` that has it."""
        rows = list(self.rollouts.values())
        given = [[v for field in fields if (v := getattr(rollout, field)) is not None] for rollout in rows]
        self._check(" or ".join(fields), given, rows_B, tokens_BT, reader)
        if name == "token_text":
            return [values[0] if values else [""] * len(r.response_ids) for values, r in zip(given, rows, strict=True)]
        if name in ROW_FIELDS:
            return torch.tensor([v[0] if v else 0 for v in given], dtype=ROW_FIELDS[name] or self.dtype)
        ragged = [_first(v) or [0.0] * len(r.response_ids) for v, r in zip(given, rows, strict=True)]
        return pad([[0.0 if value is None else value for value in row] for row in ragged], self.dtype)

    def _check(self, fields: str, given: Sequence[list], rows_B: Tensor, tokens_BT: Tensor, reader: str) -> None:
        """Raise `ReplayError` where a rollout, or a token of one, that is needed has none of the fields."""
        lacking = [
            (place, needed) for place, values, needed in zip(self.rollouts, given, rows_B, strict=True) if not values
        ]
        needing = [place for place, needed in lacking if needed]
        if needing:  # a line that lacks it too, and needs it for nothing, may stand before
            first, what = lacking[0][0], f"{fields}: missing, and {reader} needs it"
            raise ReplayError(f"{first}: {what}" + (f" in {needing[0]}" if needing[0] != first else ""))
        for place, values, needed_T in zip(self.rollouts, given, tokens_BT, strict=True):
            lists = [value for value in values if isinstance(value, list)]
            empty = [t for t, value in enumerate(_first(lists)) if value is None and needed_T[t]]
            if empty:
                raise ReplayError(f"{place}: {fields}: null at token {empty[0]}, and {reader} needs it there")


def _first(given: list[list]) -> list:
    """Of each token the value of the first list that has one, None where none does; [] of no list."""
    return [next((v for v in values if v is not None), None) for values in zip(*given, strict=True)]


def _replay(objective: Objective, recorded: _Recorded) -> Result:
    """Run the objective over the batch. Raises `ReplayError` where a pair is none."""
    try:
        credited = assign(objective, recorded.batch, recorded.annotate)
    except PairError as error:
        row = recorded.batch.group.tolist().index(error.group)
        place, first = list(recorded.rollouts.items())[row]
        raise ReplayError(f"{place}: group {first.group!r}: {error}") from error
    current = recorded.current(credited)
    contributions = [term.contribution(current, credited.batch) for term in credited.terms]
    primary = credited.primary
    own = contributions[credited.terms.index(primary)]
    (gradient,) = torch.autograd.grad(own, current.logprob, retain_graph=True)
    signal, removed_by = credited.signal, credited.signal.removed_by
    carrying = credited.batch.mask & (credited.trace.taken_by < 0)
    if "advantage" in primary.loss.needs:  # clipping leaves tokens without gradient
        carrying = gradient != 0
        removed_by = {**removed_by, primary.loss.name: signal.with_gradient - int(carrying.sum())}
    summary: dict[str, Any] = {
        "loss": float(sum(contributions).detach()),
        "count": primary.token_weights.count,
        "unit": primary.loss.unit,
        "signal": {
            **({"environment": signal.environment} if signal.environment else {}),
            "generated": signal.generated,
            "carrying": int(carrying.sum()),
            "taken": removed_by,
        },
    }
    if objective.preference:
        credited = _implied(credited, torch.autograd.grad(sum(contributions), current.logprob)[0])
        with torch.no_grad():
            measured = primary.loss.measure(current, credited.batch, primary.token_weights)
        summary |= summarised(measured)
    if len(contributions) > 1:
        names = distinct([term.loss.name for term in credited.terms])
        summary["terms"] = {
            name: {"loss": float(value.detach()), "count": term.token_weights.count, "unit": term.loss.unit}
            for name, term, value in zip(names, credited.terms, contributions, strict=True)
        }
    return Result(credited, carrying, summary)


def _implied(credited: Credited, gradient: Tensor) -> Credited:
    """Give a loss of pairs, which has no advantage, the one whose policy gradient would be the loss's own."""
    count = credited.primary.token_weights.count / credited.objective.weight
    batch = replace(credited.batch, advantage=-count * gradient)
    return replace(credited, batch=batch)
