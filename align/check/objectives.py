"""Run a user's own transforms and losses once before a run, on rows that are made up: one that crashes is a problem.

Objectives of this library alone are not run here; their tests do that.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import align
from align.batch import Batch
from align.config.compose import build_objectives
from align.config.experiment import Experiment
from align.config.recipe_file import ConfigError
from align.credit import assign
from align.data.turns import turn_columns
from align.learner.passes import PROVIDED_BY
from align.losses.loss import Current, Loss, summarised
from align.objectives.objective import Objective
from align.transforms.transform import Transform

GROUPS, LENGTHS = 3, (4, 1, 6, 3)  # made up: groups, and tokens of the responses in turn

LARGEST = 256  # rows of a group that is made up

LIBRARY = Path(align.__file__).parent

ROWS = ("group", "kept", "reward", "correct", "truncated", "chosen")  # fields of a batch with one value a row

TOKENS = ("response_ids", "selected", "weight", "token_reward", "returns", "advantage", *PROVIDED_BY)  # a token


class PieceError(Exception):
    """A transform or a loss failed."""


def try_objectives(experiment: Experiment) -> list[str]:
    """Find own transforms and losses that crash. Objectives that cannot be built are told of before."""
    try:
        objectives = build_objectives(experiment.file)  # new ones: what these remember is not the run's
    except ConfigError:
        return []
    problems = []
    for i, objective in enumerate(objectives):
        if not any(map(is_own, (*objective.chain, *objective.losses))):
            continue
        key = experiment.file.objective_key(i)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                _run(objective, _made_up(experiment, objective))
        except PieceError as error:
            problems.append(experiment.file.problem(key, f"{error}; tried on rows that are made up"))
    return problems


def is_own(piece: Transform | Loss) -> bool:
    """Whether some function of a transform or a loss is the user's."""
    functions = [getattr(piece, field.name) for field in fields(piece)]
    return any(callable(fn) and not str(getattr(fn, "__module__", "")).startswith("align.") for fn in functions)


def _run(objective: Objective, batch: Batch) -> None:
    """Credit a batch and take the losses' gradient. Raises `PieceError` with the name of what failed."""
    chain = tuple(replace(piece, apply=partial(_applied, piece)) for piece in objective.chain)
    losses = tuple(
        replace(loss, **{name: partial(_guarded, loss.name, getattr(loss, name)) for name in ("weigh", "values")})
        for loss in objective.losses
    )
    credited = _guarded(objective.name, assign, replace(objective, chain=chain, losses=losses), batch, _annotate)
    read = {name: _some(batch).requires_grad_() for name in credited.reads_current}
    current = Current((-_some(batch)).requires_grad_(), **read)
    for term in credited.terms:
        name = term.loss.name
        loss = _guarded(name, term.contribution, current, credited.batch)
        if not torch.isfinite(loss).all():
            raise PieceError(f"{name} gives a loss of {float(loss.detach())}")
        if loss.requires_grad:
            _guarded(name, loss.backward)
        with torch.no_grad():
            measured = _guarded(name, term.loss.measure, current, credited.batch, term.token_weights)
            _guarded(name, summarised, measured)


def _applied(transform: Transform, batch: Batch) -> Batch:
    """The batch after a transform. Raises `PieceError` where it fails or returns no batch of the same shapes."""
    after = _guarded(transform.name, transform.apply, batch)
    if not isinstance(after, Batch):
        raise PieceError(f"{transform.name} returned {type(after).__name__}; return the batch, changed by `replace`")
    for field in fields(Batch):
        value = getattr(after, field.name)
        wanted = batch.mask.shape if field.name in TOKENS else batch.kept.shape if field.name in ROWS else None
        if wanted is not None and value is not None and getattr(value, "shape", None) != wanted:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise PieceError(f"{transform.name} gives {field.name} as {got} where the batch has {list(wanted)}")
    return after


def _guarded(name: str, step: Callable, *arguments: Any) -> Any:
    """Return what a step returns. Raises `PieceError` with the line of the user's code for whatever it raises."""
    try:
        return step(*arguments)
    except PieceError:
        raise
    except Exception as error:  # of the user's code
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not Path(f.filename).is_relative_to(LIBRARY)]
        where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        raise PieceError(f"{name} failed: {type(error).__name__}: {error}{where}") from error


def _some(batch: Batch) -> Tensor:
    """[B,T] in (0, 1): a number for each token."""
    return torch.rand(batch.mask.shape)


def _annotate(batch: Batch, names: Sequence[str], rows_B: Tensor, reader: str) -> Batch:
    """Make up what a model would be run for, as `align.credit.Annotate` says."""
    for name in names:
        if name in PROVIDED_BY and getattr(batch, name) is None:
            some = _some(batch)
            batch = replace(batch, **{name: -some if name.endswith("logprob") else some})
        batch.need(name, reader)
    return batch


def _made_up(experiment: Experiment, objective: Objective) -> Batch:
    """Groups of responses, or pairs where the objective learns from pairs of the data."""
    recipe = experiment.recipe
    sources = recipe.sources() if recipe.data else {}
    source = sources.get(objective.data) or next(iter(sources.values()), None)
    pairs = bool(source and source.pairs)
    size = 2 if pairs else min(recipe.sampling.group_size, LARGEST) if recipe.sampling else 4
    rows = GROUPS * size
    ids = [[5 + (row + t) % 7 for t in range(LENGTHS[row % len(LENGTHS)])] for row in range(rows)]
    batch = Batch.of(
        [row // size for row in range(rows)],
        ids,
        prompt_ids=[[1, 2, 3]] * rows,
    )
    on_demand = {"token_text": [[f"t{token}" for token in row] for row in ids], **turn_columns(ids, None, [()] * rows)}
    batch = replace(batch, **{name: value for name, value in on_demand.items() if name in objective.reads})
    every = 2 if pairs else 3
    reward = torch.tensor([float(row % every == 0 and (pairs or row >= size)) for row in range(rows)])
    truncated = torch.tensor([row % 4 == 2 for row in range(rows)])
    batch = replace(batch, reward=reward, correct=reward > 0.5, truncated=truncated)
    return replace(batch, chosen=batch.correct) if pairs else replace(batch, sampler_logprob=-_some(batch))
