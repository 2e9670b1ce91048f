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
from align.ranges import Recorded

ROW_FIELDS = {"reward": torch.float64, "correct": torch.bool, "truncated": torch.bool, "chosen": torch.bool}

TOKEN_FIELDS = (
    *("sampler_logprob", "old_logprob", "logprob", "ref_logprob", "guide_logprob", "entropy"),
    *("ref_kl", "value", "new_value", "reward_mask", "kl_mask"),
)


class RecordedRollout(Recorded):
    """One line of the input. Fields that the objective does not need may be missing; others are ignored.

    `reward: null` is a response that no reward function applied to: it takes no part.
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
    """A recorded rollout that cannot be used; the message names file, line and field."""


def read(path: str | Path) -> dict[str, RecordedRollout]:
    """{place: rollout} of a JSON-lines file. Raises `ReplayError` for the first line that is wrong."""
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
    """The output lines of the command: one a response in input order, then the loss."""
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
    if len(entries) == 1:
        return entries[0]
    return {"objectives": [{"name": o.name, **e} for o, e in zip(experiment.objectives, entries, strict=True)]}


class _Recorded:
    """The recorded rollouts as a batch, and an `annotate` that reads the file instead of running a model."""

    def __init__(self, rollouts: dict[str, RecordedRollout], old_from: str):
        self.rollouts, self.old_from = rollouts, old_from
        number: dict[str | int, int] = {}
        groups = [number.setdefault(r.group, len(number)) for r in rollouts.values()]
        special = [r.special or [False] * len(r.response_ids) for r in rollouts.values()]
        ids = [r.response_ids for r in rollouts.values()]
        self.batch = Batch.of(groups, ids, dtype=torch.float64, special=pad(special, torch.bool))

    def annotate(self, batch: Batch, names: Sequence[str], rows_B: Tensor, reader: str) -> Batch:
        for name in names:
            if name not in GIVERS and getattr(batch, name) is None:
                batch = replace(batch, **{name: self.quantity(name, rows_B, reader)})
        return batch

    def quantity(self, name: str, rows_B: Tensor, reader: str) -> Tensor:
        """[B] or [B,T]; zeros in rows that nobody asked for and that lack it."""
        fields = [name]
        if name == "old_logprob":
            # recomputed before the first update, the old log-probabilities are those of now
            fields = ["sampler_logprob"] if self.old_from == "sampler" else ["old_logprob", "logprob"]
        return self._read(name, fields, rows_B, reader)

    def current(self, credited: Credited) -> Current:
        """What the policy says now, as leaves of the graph; a value that is not given is the old one."""
        rows = credited.trained.any(1)
        names = {name for term in credited.terms for name in term.loss.reads_current}
        fields = {name: ["new_value", "value"] if name == "value" else [name] for name in ("logprob", *names)}
        return Current(**{n: self._read(n, f, rows, "the loss").requires_grad_() for n, f in fields.items()})

    def _read(self, name: str, fields: list[str], rows_B: Tensor, reader: str) -> Tensor:
        values = []
        for i, (place, rollout) in enumerate(self.rollouts.items()):
            value = next((v for v in (getattr(rollout, f) for f in fields) if v is not None), None)
            if value is None and rows_B[i]:
                raise ReplayError(f"{place}: {' or '.join(fields)}: missing, and {reader} needs it")
            values.append(value)
        if name == "token_text":
            return [v or [""] * len(r.response_ids) for v, r in zip(values, self.rollouts.values(), strict=True)]
        if name in ROW_FIELDS:
            return torch.tensor([v if v is not None else 0 for v in values], dtype=ROW_FIELDS[name])
        ragged = [
            v if v is not None else [0.0] * len(r.response_ids)
            for v, r in zip(values, self.rollouts.values(), strict=True)
        ]
        return pad(ragged, torch.float64)


def _replay(objective, recorded: _Recorded) -> tuple[Credited, dict[str, Any]]:
    try:
        credited = assign(objective, recorded.batch, recorded.annotate)
    except PairError as error:
        row = recorded.batch.group.tolist().index(error.group)
        place, first = list(recorded.rollouts.items())[row]
        raise ReplayError(f"{place}: group {first.group!r}: {error}") from error
    current = recorded.current(credited)
    shares = [term.contribution(current, credited.batch) for term in credited.terms]
    main = credited.primary
    (gradient,) = torch.autograd.grad(shares[credited.terms.index(main)], current.logprob, retain_graph=True)
    signal, taken, with_gradient = credited.signal, credited.signal.removed_by, credited.signal.with_gradient
    if "advantage" in main.loss.needs:  # what clipping took
        with_gradient = int((gradient != 0).sum())
        taken = {**taken, main.loss.name: signal.with_gradient - with_gradient}
    summary: dict[str, Any] = {
        "loss": float(sum(shares).detach()),
        "count": main.token_weights.count,
        "unit": main.loss.unit,
        "signal": {"generated": signal.generated, "carrying": with_gradient, "taken": taken},
    }
    if objective.preference:
        credited = _implied(credited, torch.autograd.grad(sum(shares), current.logprob)[0])
        with torch.no_grad():
            measured = main.loss.measure(current, credited.batch, main.token_weights)
        summary |= summarised(measured)
    if len(shares) > 1:
        names = distinct([term.loss.name for term in credited.terms])
        summary["terms"] = {
            name: {"loss": float(share.detach()), "count": term.token_weights.count, "unit": term.loss.unit}
            for name, term, share in zip(names, credited.terms, shares, strict=True)
        }
    return credited, summary


def _implied(credited: Credited, gradient: Tensor) -> Credited:
    """A loss of pairs has no advantage: each token's is the one whose policy gradient would be the loss's own."""
    count = credited.primary.token_weights.count / credited.objective.weight
    batch = replace(credited.batch, advantage=-count * gradient)
    return replace(credited, batch=batch)


def _token_weight(credited: Credited) -> Tensor:
    """[B,T] what each token counts for; where a loss counts pairs, every token that takes part is 1."""
    if credited.objective.preference:
        return credited.batch.active.to(torch.float64)
    return credited.primary.token_weights.weight


def _row(credited: Credited, row: int | None, length: int) -> dict[str, Any]:
    if row is None:
        return {"kept": False, "advantage": [0.0] * length, "weight": [0.0] * length}
    batch = credited.batch
    return {
        "kept": bool(batch.kept[row]),
        "advantage": [0.0] * length if batch.advantage is None else batch.advantage[row, :length].tolist(),
        "weight": _token_weight(credited)[row, :length].tolist(),
    }
