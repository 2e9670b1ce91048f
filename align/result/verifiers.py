"""A line of a run's record as one of `traces.jsonl` of verifiers 0.4: an `Episode` with one `Trace`, whose
`MessageNode`s follow each other. Plain JSON, by its schema alone: the package is not needed.

The `token_ids` of the nodes, one behind the other, are the exact tokens of prompt and response. What is not known is
left out: no 0 takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby, pairwise
from typing import Any

from align.data.prompts import POLICY
from align.result.samples import RecordedRollout, RecordedTurn, ReplayError, Stream

SCHEMA = "0.4.0"  # of verifiers

NEVER = 0.0  # s since the epoch: a record does not tell when a token was sampled, and a reader would take today

SUCCESS, CUT, FAILED = "agent_completed", "max_output_tokens", "error"  # why a trace ended, in its words

# {field of a node: stream of a line}, values of the tokens that the policy chose
SCORED = {
    "logprobs": "sampler_logprob",
    "reference_logprobs": "ref_logprob",
    "trainer_logprobs": "logprob",
    "entropies": "entropy",
}


def episode(run: str, place: str, line: RecordedRollout) -> dict[str, Any]:
    """The episode of a sampled response. `run` names the run, `place` is the line's `file:line`.

    Raises `ReplayError` where the line has no prompt.
    """
    if not line.prompt_ids or line.prompt is None:
        raise ReplayError(
            f"{place}: prompt, prompt_ids: missing, and a trace begins with them; a run's record has both"
        )
    number = place.rpartition(":")[2]
    why = [{"type": "RewardError", "message": f"{name}: {told}"} for name, told in (line.failed or {}).items()]
    end = FAILED if why else CUT if line.truncated else SUCCESS
    task = {"type": line.source or "align", "data": {"prompt": line.prompt}, "key": str(line.group)}
    trace = {
        "version": 1,
        "id": f"{run}-{number}",
        "verifiers": {"version": SCHEMA},
        "task": task,
        "agent": {"config": {}},
        "nodes": _nodes(line),
        "rewards": {"reward": None if line.reward is None else {"score": line.reward, "weight": 1.0}},
        "metrics": dict(line.rewards or {}),
        "info": _info(line),
        "is_completed": True,
        "ok": not why,
        "stop_condition": end,
        "errors": why,
        "timing": {"start": NEVER},
    }
    work = {"type": "train", "step": line.step}
    step = {} if line.step is None else {"run": {"type": "train", "id": run, "work": work}}
    same = {"id": trace["id"], "task": task, "group": {"id": str(line.group)}, **step}
    return {**same, "ok": trace["ok"], "errors": why, "traces": [trace]}


def _info(line: RecordedRollout) -> dict[str, Any]:
    """What a trace has no field for."""
    names = [decision.name for decision in line.objectives or ()]
    told = {"step": line.step, "source": line.source, "correct": line.correct, "truncated": line.truncated}
    told |= {"objectives": names or None, "kept": line.kept, "episode": line.episode}
    return {name: value for name, value in told.items() if value is not None}


def _nodes(line: RecordedRollout) -> list[dict[str, Any]]:
    """The prompt, then each stretch of the response. What the template alone wrote is the policy's node's, unsampled,
    as headers of answers are."""
    prompt = {"role": "user", "content": line.prompt}
    out = [_node(None, prompt, line.prompt_ids, [False] * len(line.prompt_ids))]
    scaffold, asked = 0, 0
    for turn in _turns(line):
        if turn.role == "template":
            scaffold = turn.end - turn.start
            continue
        own, start = turn.role == POLICY, turn.start - scaffold
        mask = [False] * scaffold + [own] * (turn.end - turn.start)
        said = _message(turn, asked)
        asked += said["role"] == "tool"
        node = _node(len(out) - 1, said, line.response_ids[start : turn.end], mask)
        out.append({**node, "sampled": True, **_scores(line, turn)} if own else node)
        scaffold = 0
    return out


def _node(parent: int | None, message: Mapping[str, Any], ids: list[int], mask: list[bool]) -> dict[str, Any]:
    """A node of tokens that nobody sampled."""
    rooted = {} if parent is None else {"parent": parent}
    return {**rooted, "message": message, "sampled": False, "timestamp": NEVER, "token_ids": ids, "mask": mask}


def _message(turn: RecordedTurn, number: int) -> dict[str, Any]:
    """The message of a stretch, its text as it stands in the tokens. A tool's answers a call, whose name is made up."""
    if turn.role == "tool":
        return {"role": "tool", "tool_call_id": f"call_{number}", "content": turn.text}
    return {"role": turn.role if turn.role in (POLICY, "system") else "user", "content": turn.text}


def _scores(line: RecordedRollout, turn: RecordedTurn) -> dict[str, list[float]]:
    """What is known of each token of a turn; a stream that lacks some of them is left out. The advantages are those of
    the first objective."""
    advantage = line.advantage[0] if line.advantage else None
    streams: dict[str, Stream | None] = {name: getattr(line, stream) for name, stream in SCORED.items()}
    found = {
        name: values[turn.start : turn.end] for name, values in {**streams, "advantages": advantage}.items() if values
    }
    return {name: values for name, values in found.items() if None not in values}


def _turns(line: RecordedRollout) -> list[RecordedTurn]:
    """The stretches of a response: those of the line, or by the numbers of its tokens, where nobody says who the others
    are."""
    if line.turns:
        return line.turns
    numbers, texts = line.turn_numbers, line.token_text
    starts = [next(group)[0] for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1])]
    if len(starts) < 2:
        return [RecordedTurn(role=POLICY, start=0, end=len(numbers), text=line.response or "")]
    return [
        RecordedTurn(role=POLICY if numbers[a] >= 0 else "user", start=a, end=b, text="".join((texts or [])[a:b]))
        for a, b in pairwise([*starts, len(numbers)])
    ]
