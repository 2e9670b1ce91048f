"""The fields of a recorded response that do not follow from its batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from align.data.prompts import Answer, Episode, Pair, Turn, turn_numbers
from align.rollout.rollouts import Rollout
from align.rollout.sources import Collected, SourceBatch


def groups_of(collected: Collected) -> list[tuple[int, bool]]:
    """(group, whether it is a row of the batch) of each response, in order."""
    if collected.pairs:
        return [(i, True) for i, pair in enumerate(collected.pairs) for _ in pair.answers]
    return [(one.group, one.reward is not None) for one in collected.rollouts]


def responses_of(source: SourceBatch) -> list[tuple[int, int | None, Callable[[], dict[str, Any]]]]:
    """(group, row in the batch or None, what gives its fields) of each response, in order."""
    if source.collected.pairs:
        sides = [(i, pair, answer) for i, pair in enumerate(source.collected.pairs) for answer in pair.answers]
        return [(i, row, partial(_side, pair, answer)) for row, (i, pair, answer) in enumerate(sides)]
    out, row = [], 0
    for rollout in source.collected.rollouts:
        rated = rollout.reward is not None
        out.append((rollout.group, row if rated else None, partial(_sampled, rollout)))
        row += rated
    return out


def _sampled(rollout: Rollout) -> dict[str, Any]:
    fields = {
        "prompt": rollout.prompt.text,
        "prompt_ids": rollout.prompt.ids,
        "response": rollout.text,
        "response_ids": list(rollout.response.ids),
        "reward": rollout.reward,
        "rewards": rollout.rewards,
        "correct": rollout.correct,
        "truncated": rollout.response.truncated,
        "policy_step": rollout.response.policy_step,
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
