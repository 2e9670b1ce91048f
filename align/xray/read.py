"""Read what a run wrote, or a file of responses, and let recipes make of it what they would."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.config.experiment import Experiment
from align.replay import replay
from align.result.samples import RecordedRollout, ReplayError, by_batch, incomplete, read, steps_of
from align.system.files import finished_json_lines
from align.system.parts import size_of
from align.xray.credits import Credits, recorded, replayed, with_loss
from align.xray.data import Look, Seen

BYTES = 256 * 2**20  # of a record that are read where nobody chose steps: more would take minutes, and no page holds it

Rollouts = dict[str, RecordedRollout]


def look(
    path: Path, steps: Container[int] | None = None, own: Experiment | None = None, against: Experiment | None = None
) -> Look:
    """What there is to see of the folder of a run, or of a file of responses.

    `steps` are those to read, by default all, or as many as can be read in some seconds. `own` is the recipe of the
    run, which tells what only a loss knows; `against` another one. Raises `ReplayError` for a line that is wrong, and
    for what `against` lacks.
    """
    record, folder = (path / "samples.jsonl", path) if path.is_dir() else (path, None)
    metrics, greedy = _measured(folder) if folder else ([], [])
    title = path.resolve().name if folder else path.name
    chosen, notes = spread(record, BYTES) if steps is None else (steps, [])
    if folder and size_of(record) == 0:
        notes.append(
            "samples.jsonl has no response, so there are no tokens to see; run.samples says how many it keeps."
        )
        return Look(title, [], metrics, greedy, notes)
    rollouts = read(record, chosen)
    if part := incomplete(rollouts):
        notes.append(f"Not all is here: {part[1]}.")
    batches = list(by_batch(rollouts))
    batches.sort(key=lambda batch: next(iter(batch.values())).step or 0)  # stable: sources keep their order
    others = _others(against, batches) if against else []
    told, lacks = _own(own, batches) if own else ([], [])
    seen = []
    for number, batch in enumerate(batches):
        theirs = told[number] if number < len(told) else []
        seen.append(Seen(batch, _joined(recorded(batch), theirs), others[number] if others else ()))
    if not any((*each.credits, *each.against) for each in seen):
        notes.append("These lines do not say what an objective decided; --against RECIPE shows what one makes of them.")
    return Look(title, seen, metrics, greedy, [*notes, *lacks])


def _measured(folder: Path) -> tuple[list[Mapping[str, Any]], ...]:
    """The lines of metrics.jsonl and of greedy.jsonl."""
    try:
        return tuple(finished_json_lines(folder / name) for name in ("metrics.jsonl", "greedy.jsonl"))
    except ValueError as error:
        raise ReplayError(str(error)) from error


def spread(record: Path, most: int) -> tuple[Sequence[int] | None, list[str]]:
    """(steps to read, what to say of it): all of a record of at most so many bytes (None), else evenly spaced ones, the
    first and the last among them."""
    size = size_of(record)
    steps = steps_of(record) if size > most else []
    count = max(2, most * len(steps) // size) if steps else 0
    if count >= len(steps):
        return None, []
    chosen = [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]
    return chosen, [f"{count} of {len(steps)} steps, evenly spaced; --step N or --step A..B shows others."]


def _replays(experiment: Experiment, batches: Sequence[Rollouts]):
    """Each batch replayed, in order. Raises `ReplayError`."""
    return replay(experiment, {place: row for batch in batches for place, row in batch.items()})


def _others(experiment: Experiment, batches: Sequence[Rollouts]) -> list[list[Credits]]:
    """What another recipe makes of each batch. Raises `ReplayError` that names what the record lacks for it."""
    try:
        return [replayed(found) for found in _replays(experiment, batches)]
    except ReplayError as error:
        raise ReplayError(f"--against: {error}") from error


def _own(experiment: Experiment, batches: Sequence[Rollouts]) -> tuple[list[list[Credits]], list[str]]:
    """(what the run's own objectives make of each batch, as far as the record allows; what was lacking)."""
    told: list[list[Credits]] = []
    try:
        for found in _replays(experiment, batches):
            told.append(replayed(found))
    except ReplayError as error:
        return told, [f"What only the loss knows (clipped tokens, implied credit) is not shown of all steps: {error}"]
    return told, []


def _joined(decided: Sequence[Credits], told: Sequence[Credits]) -> Sequence[Credits]:
    """What was decided and written down, with what a replay tells of the losses; the replay where nothing was."""
    if not decided:
        return told
    if [(c.name, len(c.kept)) for c in decided] != [(c.name, len(c.kept)) for c in told]:
        return decided
    return [with_loss(then, now) for then, now in zip(decided, told, strict=True)]
