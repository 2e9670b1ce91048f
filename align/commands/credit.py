"""`python -m align credit`: what each token of recorded rollouts earns under a recipe, as lines of JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.config.experiment import Experiment
from align.credit import Credited
from align.replay import Replayed, replay
from align.result.samples import incomplete, is_part, read


def credit(
    experiment: Experiment, path: str | Path, tell: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """The output lines of the command: one a response in input order, then the loss of each batch.

    `tell` gets a line where batches are not there as a whole. Raises `ReplayError`.
    """
    rollouts = read(path)
    if part := incomplete(rollouts):
        tell(": ".join(part))
    batches = list(replay(experiment, rollouts))
    lines = {}
    for batch in batches:
        for place, rollout in batch.rollouts.items():
            row, length = batch.row_of.get(place), len(rollout.response_ids)
            entries = [_row(result.credited, row, length) for result in batch.results]
            turns = rollout.turn_numbers
            told = {"turn": turns} if any(turns) else {}
            lines[place] = {"group": rollout.group, **told, **_one_or_many(entries, batch)}
    out = [lines[place] for place in rollouts]
    for batch in batches:
        summary = _one_or_many([result.summary for result in batch.results], batch)
        out.append(
            {
                **_which(batch, experiment.recipe.optim.updates_per_step),
                "loss": sum(result.summary["loss"] for result in batch.results),
                **summary,
            }
        )
    return out


def _which(batch: Replayed, updates: int) -> dict[str, Any]:
    """Which batch of a run a loss is of, how many of its responses are there, and before which update of several."""
    first = next(iter(batch.rollouts.values()))
    if not first.version:
        return {}
    said = {"step": first.step, "source": first.source}
    if is_part(batch.rollouts):
        said |= {"rows": len(batch.rollouts), "batch_rows": first.batch_rows}
    return said | ({"update": 1, "updates": updates} if updates > 1 else {})


def _one_or_many(entries: list[dict], batch: Replayed) -> dict[str, Any]:
    """The entry of the one objective, or those of several with their names."""
    if len(entries) == 1:
        return entries[0]
    names = [result.credited.objective.name for result in batch.results]
    return {"objectives": [{"name": name, **entry} for name, entry in zip(names, entries, strict=True)]}


def _row(credited: Credited, row: int | None, length: int) -> dict[str, Any]:
    """The credit of one response; `row` is None where it takes no part."""
    if row is None:
        return {"kept": False, "advantage": [0.0] * length, "weight": [0.0] * length}
    batch = credited.batch
    return {
        "kept": bool(batch.kept[row]),
        "advantage": [0.0] * length if batch.advantage is None else batch.advantage[row, :length].tolist(),
        "weight": credited.token_weight[row, :length].tolist(),
    }
