"""Rollouts that nobody sampled."""

from dataclasses import replace
from types import SimpleNamespace

from align.data.prompts import Prompt, Response
from align.rollout.rollouts import Rollout

WORDS = SimpleNamespace(all_special_ids=[], decode=str, batch_decode=lambda ids, **_: [str(i) for i in ids])


def rollout(group, index, reward, length=3, correct=False, truncated=False):
    prompt = Prompt([1], f"p{group}", f"p{group}", {})
    response = Response([5] * length, [-1.0] * length, truncated)
    return Rollout(group, index, prompt, response, "x", {"r": reward}, reward, correct)


def failing(group, index, length=3):
    return replace(rollout(group, index, None, length), failed={"r": "took too long"})
