"""`python -m align credit`: replay recorded rollouts through an objective, without any model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import FiniteFloat, ValidationError
from torch import Tensor

from align.batch import Batch, pad
from align.config.compose import GIVERS
from align.config.experiment import Experiment
from align.config.problems import distinct
from align.credit import Credited, assign
from align.losses.loss import Current, summarised
from align.losses.pairs import PairError
from align.objectives.objective import Objective
from align.ranges import Recorded

ROW_FIELDS = {"reward": torch.float64, "correct": torch.bool, "truncated": torch.bool, "chosen": torch.bool}

TOKEN_FIELDS = (
    *("sampler_logprob", "old_logprob", "logprob", "ref_logprob", "guide_logprob", "entropy"),
    *("ref_kl", "value", "new_value", "reward_mask", "kl_mask"),
)

# {quantity of the policy now: the fields that give it, the first that is there}
NOW = {"logprob": ["logprob", "old_logprob", "sampler_logprob"]}


class RecordedRollout(Recorded):
    """One line of the input. Fields that the objective does not need may be missing; unknown ones are ignored.

    Lists have one value a token, in nats where they are log-probabilities. `reward: null` marks a response that no
    reward function applied to: it takes no part.
    """

    group: str | int
    response_ids: list[int]
    reward: FiniteFloat | None = None
    correct: bool | None = None
    truncated: bool | None = None
    chosen: bool | None = None
    sampler_logprob: list[FiniteFloat] | None = None
    old_logprob: list[FiniteFloat] | None = None
    logprob: list[FiniteFloat] | None = None
    ref_logprob: list[FiniteFloat] | None = None
    guide_logprob: list[FiniteFloat] | None = None
    entropy: list[FiniteFloat] | None = None
    ref_kl: list[FiniteFloat] | None = None
    value: list[FiniteFloat] | None = None
    new_value: list[FiniteFloat] | None = None
    reward_mask: list[FiniteFloat] | None = None
    kl_mask: list[FiniteFloat] | None = None
    special: list[bool] | None = None
    token_text: list[str] | None = None


class ReplayError(ValueError):
    """A recorded rollout cannot be used; the message names file, line and field."""


def read(path: str | Path) -> dict[str, RecordedRollout]:
    """Read {`file:line`: rollout} of a JSON-lines file. Raises `ReplayError` for the first line that is wrong."""
    rollouts = {}
    with open(path, encoding="utf-8") as file:  # not splitlines, which also splits within a text, at U+2028
        lines = [(f"{path}:{number}", line) for number, line in enumerate(file, 1) if line.strip()]
    for place, line in lines:
        try:
            rollout = RecordedRollout.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(map(str, first["loc"])) or "line"
            raise ReplayError(f"{place}: {name}: {first['msg']}") from error
        for name in (*TOKEN_FIELDS, "special", "token_text"):
            values = getattr(rollout, name)
            if values is not None and len(values) != len(rollout.response_ids):
                wanted = f"there are {len(rollout.response_ids)} response_ids"
                raise ReplayError(f"{place}: {name}: has {len(values)} values, but {wanted}")
        rollouts[place] = rollout
    if not rollouts:
        raise ReplayError(f"{path}: no rollouts; write one JSON object a line")
    return rollouts


def credit(experiment: Experiment, path: str | Path) -> list[dict[str, Any]]:
    """The output lines of the command: one a response in input order, then the loss. Raises `ReplayError`."""
    rollouts = read(path)
    _check_groups(experiment, rollouts)
    rated = {p: r for p, r in rollouts.items() if r.reward is not None or "reward" not in r.model_fields_set}
    recorded = _Recorded(rated, experiment.recipe.sampling.old_logprob)
    results = [_replay(objective, recorded) for objective in experiment.objectives]
    lines = []
    row_of = {place: row for row, place in enumerate(rated)}
    for place, rollout in rollouts.items():
        credits = [_row(credited, row_of.get(place), len(rollout.response_ids)) for credited, _ in results]
        lines.append({"group": rollout.group, **_one_or_many(credits, experiment)})
    summary = _one_or_many([summary for _, summary in results], experiment)
    return [*lines, {"loss": sum(summary["loss"] for _, summary in results), **summary}]


def _check_groups(experiment: Experiment, rollouts: dict[str, RecordedRollout]) -> None:
    """Raise `ReplayError` where the smallest group is too small for a transform."""
    sizes = Counter(rollout.group for rollout in rollouts.values())
    group, size = min(sizes.items(), key=lambda item: item[1])
    for objective in experiment.objectives:
        for transform in objective.chain:
            try:
                transform.check(size)
            except ValueError as error:
                place = next(place for place, rollout in rollouts.items() if rollout.group == group)
                raise ReplayError(f"{place}: group {group!r}: {transform.name}: {error}") from error


def _one_or_many(entries: list[dict], experiment: Experiment) -> dict[str, Any]:
    """The entry of the one objective, or those of several with their names."""
    if len(entries) == 1:
        return entries[0]
    return {"objectives": [{"name": o.name, **e} for o, e in zip(experiment.objectives, entries, strict=True)]}


class _Recorded:
    """The recorded rollouts as a batch, and an `annotate` that takes quantities from them instead of from a model."""

    def __init__(self, rollouts: dict[str, RecordedRollout], old_from: str):
        self.rollouts, self.old_from = rollouts, old_from
        number: dict[str | int, int] = {}
        groups = [number.setdefault(r.group, len(number)) for r in rollouts.values()]
        special = [r.special or [False] * len(r.response_ids) for r in rollouts.values()]
        ids = [r.response_ids for r in rollouts.values()]
        self.batch = Batch.of(groups, ids, dtype=torch.float64, special=pad(special, torch.bool))

    def annotate(self, batch: Batch, names: Sequence[str], rows_B: Tensor, reader: str) -> Batch:
        """Fill the quantities named, as `align.credit.Annotate` says. Raises `ReplayError` for a missing one."""
        for name in names:
            if name not in GIVERS and getattr(batch, name) is None:
                batch = replace(batch, **{name: self.quantity(name, rows_B, reader)})
        return batch

    def quantity(self, name: str, rows_B: Tensor, reader: str) -> Tensor:
        """[B] or [B,T] float64, bool, or texts; zeros in rows that lack the quantity and are not marked in `rows_B`."""
        fields = [name]
        if name == "old_logprob":
            # before the first update the old log-probabilities are the current ones
            fields = ["sampler_logprob"] if self.old_from == "sampler" else ["old_logprob", "logprob"]
        return self._read(name, fields, rows_B, reader)

    def current(self, credited: Credited) -> Current:
        """The policy's current quantities, as leaves of the graph; where `new_value` is missing it is `value`.

        Where no rollout records the policy now, it is the one before the update, as at a step's first update.
        """
        rows = credited.trained.any(1)
        names = {name for term in credited.terms for name in term.loss.reads_current}
        fields = {name: ["new_value", "value"] if name == "value" else [name] for name in ("logprob", *names)}
        for name, instead in NOW.items():
            if name in fields and all(getattr(rollout, instead[0]) is None for rollout in self.rollouts.values()):
                fields[name] = instead
        return Current(**{n: self._read(n, f, rows, "the loss").requires_grad_() for n, f in fields.items()})

    def _read(self, name: str, fields: list[str], rows_B: Tensor, reader: str) -> Tensor:
        """The quantity `name` from the first of `fields` that a rollout has."""
        found = {place: [getattr(rollout, field) for field in fields] for place, rollout in self.rollouts.items()}
        values = [next((v for v in given if v is not None), None) for given in found.values()]
        lacking = [(place, needed) for place, v, needed in zip(found, values, rows_B, strict=True) if v is None]
        needing = [place for place, needed in lacking if needed]
        if needing:  # a line that lacks it too, and needs it for nothing, may stand before
            first, what = lacking[0][0], f"{' or '.join(fields)}: missing, and {reader} needs it"
            raise ReplayError(f"{first}: {what}" + (f" in {needing[0]}" if needing[0] != first else ""))
        if name == "token_text":
            return [v or [""] * len(r.response_ids) for v, r in zip(values, self.rollouts.values(), strict=True)]
        if name in ROW_FIELDS:
            return torch.tensor([v if v is not None else 0 for v in values], dtype=ROW_FIELDS[name])
        ragged = [
            v if v is not None else [0.0] * len(r.response_ids)
            for v, r in zip(values, self.rollouts.values(), strict=True)
        ]
        return pad(ragged, torch.float64)


def _replay(objective: Objective, recorded: _Recorded) -> tuple[Credited, dict[str, Any]]:
    """(what the objective made of the batch, its loss and counts)."""
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
    signal, removed_by, with_gradient = credited.signal, credited.signal.removed_by, credited.signal.with_gradient
    if "advantage" in primary.loss.needs:  # clipping leaves tokens without gradient
        with_gradient = int((gradient != 0).sum())
        removed_by = {**removed_by, primary.loss.name: signal.with_gradient - with_gradient}
    summary: dict[str, Any] = {
        "loss": float(sum(contributions).detach()),
        "count": primary.token_weights.count,
        "unit": primary.loss.unit,
        "signal": {"generated": signal.generated, "carrying": with_gradient, "taken": removed_by},
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
    return credited, summary


def _implied(credited: Credited, gradient: Tensor) -> Credited:
    """Give a loss of pairs, which has no advantage, the one whose policy gradient would be the loss's own."""
    count = credited.primary.token_weights.count / credited.objective.weight
    batch = replace(credited.batch, advantage=-count * gradient)
    return replace(credited, batch=batch)


def _token_weight(credited: Credited) -> Tensor:
    """[B,T] weight of each token; where a loss counts pairs, 1 for every token that takes part."""
    if credited.objective.preference:
        return credited.batch.active.to(torch.float64)
    return credited.primary.token_weights.weight


def _row(credited: Credited, row: int | None, length: int) -> dict[str, Any]:
    """The credit of one response; `row` is None where it takes no part."""
    if row is None:
        return {"kept": False, "advantage": [0.0] * length, "weight": [0.0] * length}
    batch = credited.batch
    return {
        "kept": bool(batch.kept[row]),
        "advantage": [0.0] * length if batch.advantage is None else batch.advantage[row, :length].tolist(),
        "weight": _token_weight(credited)[row, :length].tolist(),
    }
