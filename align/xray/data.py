"""What the page shows, as plain data: a head of texts and facts, and columns of one value a token or a response."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from align.registry import LOSSES, OBJECTIVES, TRANSFORMS
from align.result.samples import STREAMS, RecordedRollout
from align.xray.credits import NO_PART, Credits

TOKENS, ROWS = 400_000, 8_000  # what a page holds at most; of more it keeps a sample and says so

VALUES = 13 * TOKENS  # fewer tokens where more is known of each, so that the page stays below 15 MB

LETTERS = 20_000  # of one text; the rest is told by its length

SIGNIFICANT = 14  # bits of a stream's mantissa: 4 digits are shown


@dataclass(frozen=True)
class Seen:
    """A batch with what objectives made of it: those of the run, and those of another recipe."""

    rollouts: Mapping[str, RecordedRollout]
    credits: Sequence[Credits]
    against: Sequence[Credits] = ()

    @property
    def step(self) -> int | None:
        return next(iter(self.rollouts.values())).step

    @property
    def source(self) -> str:
        return next(iter(self.rollouts.values())).source or "data"

    @property
    def tokens(self) -> int:
        return sum(len(row.response_ids) for row in self.rollouts.values())

    def rows(self, index: Sequence[int]) -> Seen:
        """The responses at these places only."""
        items = list(self.rollouts.items())
        credits, against = ([_some(c, index) for c in each] for each in (self.credits, self.against))
        return replace(self, rollouts=dict(items[i] for i in index), credits=credits, against=against)


@dataclass(frozen=True)
class Look:
    """All that goes on a page."""

    title: str
    batches: Sequence[Seen]
    metrics: Sequence[Mapping[str, Any]] = ()  # lines of metrics.jsonl
    greedy: Sequence[Mapping[str, Any]] = ()  # lines of greedy.jsonl
    notes: Sequence[str] = ()  # told at the top of the page


@dataclass(frozen=True)
class Page:
    """`head` is JSON; `columns` are arrays by name."""

    head: dict[str, Any]
    columns: dict[str, np.ndarray] = field(default_factory=dict)


def page(look: Look, tokens: int | None = None, rows: int = ROWS) -> Page:
    """The data of the page, of a sample of the groups where there are more than so many tokens or responses."""
    tokens = room(look.batches) if tokens is None else tokens
    whole = sum(len(seen.rollouts) for seen in look.batches)
    batches = sample(look.batches, tokens, rows)
    kept = sum(len(seen.rollouts) for seen in batches)
    notes = list(look.notes)
    if kept < whole:
        notes.insert(0, f"A sample: {kept} of {whole} responses, whole groups of every step. Counts are of the sample.")
    everyone = [rollout for seen in batches for rollout in seen.rollouts.values()]
    texts, columns = _tokens(everyone)
    columns |= {f"stream {name}": values for name, values in _streams(everyone).items()}
    objectives = list(_objectives(batches, columns))
    prompts = {text: i for i, text in enumerate(dict.fromkeys(_cut(r.prompt or "") for r in everyone))}
    columns = {name: narrow(values) for name, values in columns.items()}
    head = {
        "columns": list(columns),
        "title": look.title,
        "notes": notes,
        "texts": texts,
        "prompts": list(prompts),
        "batches": [_batch(seen) for seen in batches],
        "rows": [_row(r, number, prompts) for number, seen in enumerate(batches) for r in seen.rollouts.values()],
        "streams": [name for name in STREAMS if f"stream {name}" in columns],
        "objectives": objectives,
        "metrics": _series(look.metrics),
        "greedy": _greedy(look.greedy),
    }
    return Page(head, columns)


def room(batches: Sequence[Seen]) -> int:
    """Tokens that a page of these batches has room for."""
    rollouts = [rollout for seen in batches for rollout in seen.rollouts.values()]
    streams = sum(any(getattr(rollout, name) is not None for rollout in rollouts) for name in STREAMS)
    credits = {(seen.source, place): c for seen in batches for place, c in enumerate((*seen.credits, *seen.against))}
    each = 2 + streams + sum(2 + len(c.after) for c in credits.values())  # id, text; credit, weight
    return min(TOKENS, VALUES // each)


def sample(batches: Sequence[Seen], tokens: int, rows: int) -> list[Seen]:
    """As many whole groups of each batch as there is room for: one of each batch, first and last first, and so on."""
    if sum(s.tokens for s in batches) <= tokens and sum(len(s.rollouts) for s in batches) <= rows:
        return list(batches)
    draw = np.random.default_rng(0)  # the same run always gives the same page
    queues = [_groups(seen, draw) for seen in batches]
    order = [0, *([len(batches) - 1] if len(batches) > 1 else []), *(draw.permutation(range(1, len(batches) - 1)))]
    chosen: list[list[int]] = [[] for _ in batches]
    left = np.array([tokens, rows])
    for turn in range(max(map(len, queues))):
        for number in order:
            if turn < len(queues[number]):
                cost, index = queues[number][turn]
                if (cost <= left).all() or not any(chosen):  # never an empty page
                    left = left - cost
                    chosen[number] += index
    return [seen.rows(sorted(index)) for seen, index in zip(batches, chosen, strict=True) if index]


def _groups(seen: Seen, draw: np.random.Generator) -> list[tuple[np.ndarray, list[int]]]:
    """(tokens and responses, places) of each group, in random order."""
    places: dict[Any, list[int]] = {}
    lengths = [len(row.response_ids) for row in seen.rollouts.values()]
    for place, row in enumerate(seen.rollouts.values()):
        places.setdefault(row.group, []).append(place)
    found = [(np.array([sum(lengths[i] for i in index), len(index)]), index) for index in places.values()]
    return [found[i] for i in draw.permutation(len(found))]


def _some(credits: Credits, index: Sequence[int]) -> Credits:
    def at(rows: Sequence) -> list:
        return [rows[i] for i in index]

    return replace(
        credits,
        kept=at(credits.kept),
        taken_by=at(credits.taken_by),
        after={place: at(rows) for place, rows in credits.after.items()},
        credit=at(credits.credit),
        weight=at(credits.weight),
    )


def _tokens(rollouts: Sequence[RecordedRollout]) -> tuple[list[str], dict[str, np.ndarray]]:
    """(distinct texts of tokens, columns: where each response begins, each token's number and text)."""
    texts: dict[str, int] = {}
    ids, text_of = [], []
    for rollout in rollouts:
        ids += rollout.response_ids
        given = rollout.token_text or [f"⟨{number}⟩" for number in rollout.response_ids]
        text_of += [texts.setdefault(_cut(text), len(texts)) for text in given]
    starts = np.cumsum([0, *(len(rollout.response_ids) for rollout in rollouts)])
    numbers = {"start": starts, "id": ids, "text": text_of}
    return list(texts), {name: np.asarray(values, np.uint32) for name, values in numbers.items()}


def _streams(rollouts: Sequence[RecordedRollout]) -> dict[str, np.ndarray]:
    """{stream: float32 of every token}, NaN where it is not known; streams that nobody has are not there."""
    found = {}
    for name in STREAMS:
        if any(getattr(rollout, name) is not None for rollout in rollouts):
            rows = [getattr(r, name) or [None] * len(r.response_ids) for r in rollouts]
            found[name] = rounded([np.nan if v is None else v for row in rows for v in row])
    return found


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 where that loses nothing, as of all that a run computed."""
    if values.dtype != np.float64 or not np.array_equal(single := values.astype(np.float32), values, equal_nan=True):
        return values
    return single


def rounded(values: Iterable[float]) -> np.ndarray:
    """float32 of so many bits as the page shows, which packs better; NaN and infinities stay."""
    whole = np.array(values, np.float32)
    drop = np.uint32(23 - SIGNIFICANT)
    bits = whole.view(np.uint32)
    near = ((bits + (np.uint32(1) << (drop - np.uint32(1)))) >> drop) << drop
    return np.where(np.isfinite(whole), near.view(np.float32), whole)


def _objectives(batches: Sequence[Seen], columns: dict[str, np.ndarray]) -> Iterable[dict[str, Any]]:
    """The objectives of all batches, one entry for each name, source and side; fills their columns."""
    found: dict[tuple, dict[int, Credits]] = {}
    for number, seen in enumerate(batches):
        for against, each in ((False, seen.credits), (True, seen.against)):
            for place, credits in enumerate(each):
                found.setdefault((seen.source, against, place, credits.name), {})[number] = credits
    for number, ((source, against, _, name), by_batch) in enumerate(found.items()):
        pieces = max((c.pieces for c in by_batch.values()), key=len)
        places = sorted({place for c in by_batch.values() for place in c.after})
        for column, of in (("taken", "taken_by"), ("credit", "credit"), ("weight", "weight")):
            columns[f"{column} {number}"] = _column(batches, {b: getattr(c, of) for b, c in by_batch.items()}, of)
        for place in places:
            rows = {b: c.after[place] for b, c in by_batch.items() if place in c.after}
            columns[f"after {number} {place}"] = rounded(_column(batches, rows, "after"))
        yield {
            "name": name,
            "source": source,
            "against": against,
            "pieces": [{"name": piece, "about": about(piece)} for piece in pieces],
            "after": places,
            "implied": any(c.implied for c in by_batch.values()),
            "equation": about(name),
            "kept": {b: c.kept for b, c in by_batch.items()},
            "facts": {b: c.facts for b, c in by_batch.items()},
        }


def _column(batches: Sequence[Seen], rows: Mapping[int, Sequence[np.ndarray]], what: str) -> np.ndarray:
    """The values of all batches one after the other; nothing is known of a batch that the objective did not see."""
    nothing, kind = (NO_PART, np.int8) if what == "taken_by" else (np.nan, np.float64)
    parts = [row for b, seen in enumerate(batches) for row in rows.get(b) or [np.full(seen.tokens, nothing)]]
    return np.concatenate([*parts, np.zeros(0)]).astype(kind)


def about(name: str) -> str:
    """What the code says of a piece, of a named method its equation; nothing for names that it does not know."""
    if name in OBJECTIVES:
        return inspect.getdoc(inspect.getmodule(OBJECTIVES[name])) or ""
    factory = TRANSFORMS.get(name) or LOSSES.get(name)
    return (inspect.getdoc(factory) or "") if factory else ""


def _batch(seen: Seen) -> dict[str, Any]:
    rows = list(seen.rollouts.values())
    return {"step": seen.step, "source": seen.source, "rows": len(rows), "whole": rows[0].batch_rows or len(rows)}


def _row(rollout: RecordedRollout, batch: int, prompts: Mapping[str, int]) -> dict[str, Any]:
    """The fields of a response; those that it lacks are not there."""
    fields = ("reward", "rewards", "correct", "truncated", "chosen", "failed")
    found = {name: value for name in fields if (value := getattr(rollout, name)) is not None}
    found |= {"turns": turns} if (turns := list(_turns(rollout))) else {}
    return {"batch": batch, "group": str(rollout.group), "prompt": prompts[_cut(rollout.prompt or "")], **found}


def _turns(rollout: RecordedRollout) -> Iterable[dict[str, Any]]:
    """The turns of a response in order; one without tokens has its text."""
    for number, turn in enumerate(rollout.turns or (), 1):
        said = {"number": number, "role": turn.role, "start": turn.start, "end": turn.end, "reward": turn.reward}
        yield said if turn.end > turn.start else said | {"text": _cut(turn.text)}


def _series(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """{metric: [[step, value]]} of numbers; a step that stands twice, as after a resume, counts once."""
    found: dict[str, dict[int, float]] = {}
    for line in metrics:
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float) and np.isfinite(value):
                found.setdefault(name, {})[line["step"]] = value
    return {name: sorted(points.items()) for name, points in found.items()}


def _greedy(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """[{prompt, answers: [step, response, reward]}] of held-out prompts through the evaluations."""
    found: dict[tuple, list] = {}
    seen: dict[tuple, int] = {}
    for line in lines:
        key = line["prompt"], line["step"]
        seen[key] = seen.get(key, -1) + 1
        answer = [line["step"], _cut(line["response"]), line["reward"]]
        found.setdefault((line["prompt"], seen[key]), []).append(answer)
    return [{"prompt": _cut(prompt), "answers": answers} for (prompt, _), answers in found.items()]


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[:LETTERS]}… ({len(text) - LETTERS} more characters)"
