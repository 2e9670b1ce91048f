"""Write the record of a step, the lines of samples.jsonl; `align.result.samples` reads them back."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from align.batch import Batch
from align.credit import Credited
from align.data.prompts import Answer, Episode, Pair, Turn, turn_numbers
from align.learner.learner import Outputs
from align.result.samples import AT_UPDATE, BEFORE, LEARNED, VERSION
from align.rollout.rollouts import Rollout
from align.rollout.sources import SourceBatch

Fields = dict[str, str]  # {name: JSON}
AT_ONCE = 64  # rows of which the text is made together

Stream = tuple[Tensor, Tensor]  # [B,T] values; [B,T] bool, where they were computed


@dataclass
class Record:
    """How much of each step is recorded, and up to which step the lines tell the memories of transforms."""

    samples: Literal["all", "none"] | int = "all"  # responses of a step and source; a number takes whole groups
    seed: int = 0
    part_bytes: int = 2**30  # of samples.jsonl, from which on it becomes a part
    last: dict[str, int | None] = field(default_factory=dict)  # {source: its newest step; None: not all of it is there}

    def lines(self, step: int, batches: Sequence[SourceBatch], outputs: Sequence[Outputs]) -> Iterator[str]:
        """The lines of a step, counted from 1. `outputs` are those of all ranks."""
        for number, source in enumerate(batches if self.samples != "none" else ()):
            responses = _responses(source)
            groups = self._groups([group for group, *_ in responses], f"{self.seed}-{number}-{step}")
            name = source.credited[0].objective.data or "data"
            follows = self.last.get(name) == step - 1
            states = [{} if follows else _memories(credited) for credited in source.credited]
            whole = self.samples == "all" and any(row is not None for _, row, _ in responses)
            self.last[name] = step if whole else None
            streams = _streams(source, [o for o in outputs if o.source == number])
            group_name = f"{number}-{step}-{{}}" if number else f"{step}-{{}}"
            head = {"version": VERSION, "step": step, "source": name}
            rest = {"progress": source.collected.batch.progress, "batch_rows": len(responses)}
            recorded = [response for response in responses if response[0] in groups]
            known = _of_batch(source, streams, [row for _, row, _ in recorded if row is not None], states)
            for group, row, fields in recorded:
                line = _dumped(head | {"group": group_name.format(group)} | rest | fields)
                yield _object(line if row is None else line | next(known))

    def _groups(self, groups: Sequence[int], seed: str) -> set[int]:
        """Those that are recorded: all, or as many as there is room for, one at least."""
        if self.samples == "all" or not groups:
            return set(groups)
        sizes = Counter(groups)
        first, *others = random.Random(seed).sample(list(sizes), len(sizes))
        chosen, room = {first}, self.samples - sizes[first]
        for group in others:
            if sizes[group] <= room:
                chosen.add(group)
                room -= sizes[group]
        return chosen


def _memories(credited: Credited) -> dict[int, str]:
    """{place of a transform: JSON} of the memories before the step."""
    found = {place: _json_or_none(state) for place, state in credited.trace.state.items()}
    return {place: text for place, text in found.items() if text}


def _json_or_none(state: Any) -> str | None:
    """JSON of a memory; None where it holds more than JSON can, such as tensors of a user's transform."""
    try:
        return json.dumps(state)
    except TypeError:
        return None


def _responses(source: SourceBatch) -> list[tuple[int, int | None, dict[str, Any]]]:
    """(group, row in the batch or None, fields) of each response, in order."""
    if source.collected.pairs:
        sides = [(i, pair, answer) for i, pair in enumerate(source.collected.pairs) for answer in pair.answers]
        return [(i, row, _side(pair, answer)) for row, (i, pair, answer) in enumerate(sides)]
    out, row = [], 0
    for rollout in source.collected.rollouts:
        rated = rollout.reward is not None
        out.append((rollout.group, row if rated else None, _sampled(rollout)))
        row += rated
    return out


def _sampled(rollout: Rollout) -> dict[str, Any]:
    fields = {
        "prompt": rollout.prompt.text,
        "prompt_ids": rollout.prompt.ids,
        "response": rollout.text,
        "response_ids": rollout.response.ids,
        "reward": rollout.reward,
        "rewards": rollout.rewards,
        "correct": rollout.correct,
        "truncated": rollout.response.truncated,
        **_turns(rollout.response.turns),
        **_episode(rollout.response.episode),
    }
    if rollout.reward is None:  # in no batch: what is known of its tokens is the sampler's
        response = rollout.response
        own = [number >= 0 for number in turn_numbers(len(response.ids), response.turns)]
        known = zip(response.logprobs, own, strict=True)
        fields["sampler_logprob"] = [value if math.isfinite(value) and mine else None for value, mine in known]
    return fields | ({"failed": rollout.failed} if rollout.failed else {})


def _side(pair: Pair, answer: Answer) -> dict[str, Any]:
    chosen = answer is pair.chosen
    return {
        "prompt": pair.text,
        "prompt_ids": pair.ids,
        "response": answer.text,
        "response_ids": answer.ids,
        "reward": float(chosen),
        "correct": chosen,
        "truncated": answer.truncated,
        "chosen": chosen,
        **_turns(answer.turns),
    }


def _turns(turns: Sequence[Turn]) -> dict[str, Any]:
    """The turns of a response; nothing where it is one."""
    said = [{name: value for name, value in vars(turn).items() if value is not None} for turn in turns]
    return {"turns": said} if said else {}


def _episode(episode: Episode | None) -> dict[str, Any]:
    """How a response went in its environment; nothing where it has none."""
    names = ("environment", "ended", "success", "calls", "failed_calls")
    return {"episode": {name: getattr(episode, name) for name in names}} if episode else {}


def _of_batch(
    source: SourceBatch, streams: Mapping[str, Stream], rows: Sequence[int], states: Sequence[Mapping[int, str]]
) -> Iterator[Fields]:
    """Text, streams and decisions of these rows of the batch, in order; the first one has the memories too.

    Some rows at once: a tensor is not cut for each of them, and no text of the whole batch is held.
    """
    batch = source.collected.batch
    for start in range(0, len(rows), AT_ONCE):
        index = torch.tensor(rows[start : start + AT_ONCE])
        lengths = batch.size[index].tolist()
        columns = {"special": _numbers(batch.special[index].int(), lengths)}
        if batch.token_text is not None:
            columns = {"token_text": [json.dumps(batch.token_text[row]) for row in index.tolist()], **columns}
        columns |= {name: _numbers(s[0][index], lengths, s[1][index]) for name, s in streams.items()}
        columns |= _decisions(source.credited, index, lengths, states if start == 0 else ())
        for i in range(len(lengths)):
            yield {name: text for name, texts in columns.items() if (text := texts[i]) is not None}


def _streams(source: SourceBatch, outputs: Sequence[Outputs]) -> dict[str, Stream]:
    """{name: what is known of it} of the streams of a batch; where a token has none from before, that of the update."""
    found = {name: stream for name in BEFORE if (stream := _before(source, name))}
    trained = torch.stack([credited.trained for credited in source.credited]).any(0)
    for name, quantity in AT_UPDATE.items():
        parts = [(o.rows, getattr(o.current, quantity)) for o in outputs if o.rows]
        if parts and all(value is not None for _, value in parts):
            whole = torch.zeros(trained.shape, dtype=parts[0][1].dtype)
            for rows, value in parts:
                whole[rows] = value
            name = LEARNED.get(name, name) if name in found else name
            before, known = found.get(name, (whole, torch.zeros_like(trained)))
            found[name] = torch.where(known, before, whole), known | trained
    return found


def _before(source: SourceBatch, name: str) -> Stream | None:
    """A stream as the batch brought it, or for the rows for which an objective asked for it."""
    batch = source.collected.batch
    if (whole := getattr(batch, name)) is not None:
        return whole, batch.mask
    values, known = None, torch.zeros_like(batch.mask)
    for credited in source.credited:
        value = getattr(credited.batch, name)
        if value is None or value is batch.sampler_logprob:  # the old log-probabilities may be the sampler's
            continue
        here = batch.mask & credited.trace.known.get(name, torch.zeros_like(batch.kept))[:, None]
        values = value if values is None else torch.where(here, value, values)
        known = known | here
    return None if values is None else (values, known)


def _decisions(
    credits: Sequence[Credited], index: Tensor, lengths: Sequence[int], states: Sequence[Mapping[int, str]]
) -> dict[str, list[str]]:
    """`kept`, `advantage` and `objectives` of some rows."""
    kept = torch.stack([credited.batch.kept[index] for credited in credits], 1).tolist()
    advantages = [_or_null(credited.batch, index, lengths) for credited in credits]
    entries = [_decision(credited, index, lengths) for credited in credits]
    for entry, state in zip(entries, states, strict=False):
        if state:
            entry[0] |= {"state": _object({str(place): text for place, text in state.items()})}
    return {
        "kept": [json.dumps(row) for row in kept],
        "advantage": [f"[{', '.join(row)}]" for row in zip(*advantages, strict=True)],
        "objectives": [f"[{', '.join(map(_object, row))}]" for row in zip(*entries, strict=True)],
    }


def _decision(credited: Credited, index: Tensor, lengths: Sequence[int]) -> list[Fields]:
    """What an objective decided on some rows."""
    trace, set_by, own = credited.trace, list(credited.trace.advantages), credited.batch.mask[index]
    said = _dumped({"name": credited.objective.name, "transforms": [t.name for t in credited.objective.chain]})
    after = [_of_own(trace.advantages[i][index], lengths, own) for i in set_by[:-1]]
    columns = {
        "taken_by": _of_own(trace.taken_by[index].int(), lengths, own),
        "set_by": [json.dumps(set_by)] * len(lengths),
        "after": [f"[{', '.join(texts[i] for texts in after)}]" for i in range(len(lengths))],
        "weight": _of_own(credited.token_weight[index], lengths, own),
    }
    for name in ("token_reward", "returns"):
        if (value := getattr(credited.batch, name)) is not None:
            columns[name] = _of_own(value[index], lengths, own)
    return [said | {name: texts[i] for name, texts in columns.items()} for i in range(len(lengths))]


def _or_null(batch: Batch, index: Tensor, lengths: Sequence[int]) -> list[str]:
    if batch.advantage is None:
        return ["null"] * len(lengths)
    return _of_own(batch.advantage[index], lengths, batch.mask[index])


def _of_own(values_RT: Tensor, lengths: Sequence[int], own_RT: Tensor) -> list[str]:
    """JSON lists of the numbers of each row, null for tokens that the policy did not choose."""
    found = zip(_numbers(values_RT, lengths, own_RT), lengths, strict=True)
    return [json.dumps([None] * length) if text is None else text for text, length in found]


def _numbers(values_RT: Tensor, lengths: Sequence[int], known_RT: Tensor | None = None) -> list[str | None]:
    """JSON lists of the first numbers of each row, which give the tensor back to the bit.

    Null where one is not known or not finite; None for a row that has tokens and of which nothing is known. Nine digits
    are enough for float32; float64 has as many as it needs.
    """
    form = repr if values_RT.dtype == torch.float64 else "%.9g".__mod__
    given = values_RT.isfinite() if known_RT is None else values_RT.isfinite() & known_RT
    known = [True] * len(lengths) if known_RT is None else known_RT.any(1).tolist()
    out: list[str | None] = []
    for row, there, length, some in zip(values_RT.tolist(), given.tolist(), lengths, known, strict=True):
        texts = map(form, row[:length])
        if not all(there[:length]):
            texts = [text if is_there else "null" for text, is_there in zip(texts, there, strict=False)]
        out.append(f"[{','.join(texts)}]" if some or not length else None)
    return out


def _dumped(fields: Mapping[str, Any]) -> Fields:
    return {name: json.dumps(value) for name, value in fields.items()}


def _object(fields: Fields) -> str:
    return "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in fields.items()) + "}"
