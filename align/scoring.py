"""Calling reward functions with TRL's signature, and adding up what they return."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from align.config import RewardFunction
from align.data import Prompt
from align.generator import Response


class RewardError(RuntimeError):
    """A reward function raised or returned something else than one number or None a row."""


def text_of(prompt: Prompt, text: str) -> Any:
    """A response as reward functions get it: text, or a list with one assistant message."""
    return [{"role": "assistant", "content": text}] if prompt.conversational else text


def score(
    rewards: Sequence[RewardFunction], prompts: Sequence[Prompt], responses: Sequence[Response], texts: Sequence[str]
) -> dict[str, list[float | None]]:
    """{reward: one value a row}; None where a function does not apply. Raises `RewardError`."""
    if not prompts:
        return {reward.name: [] for reward in rewards}
    columns = {name for prompt in prompts for name in prompt.columns}
    arguments = {
        **{name: [prompt.columns.get(name) for prompt in prompts] for name in columns},
        "prompts": [prompt.prompt for prompt in prompts],
        "completions": [text_of(p, text) for p, text in zip(prompts, texts, strict=True)],
        "completion_ids": [response.ids for response in responses],
        "truncated": [response.truncated for response in responses],
    }
    return asyncio.run(_all(rewards, arguments, len(prompts)))


async def _all(rewards, arguments: dict[str, list], rows: int) -> dict[str, list[float | None]]:
    """Plain functions one after another, async ones side by side."""
    pending, out = {}, {}
    for reward in rewards:
        value = await _call(reward, arguments)
        if inspect.isawaitable(value):
            pending[reward.name] = (reward, value)
        else:
            out[reward.name] = _checked(reward, value, rows)
    results = await asyncio.gather(*(value for _, value in pending.values()), return_exceptions=True)
    for (reward, _), result in zip(pending.values(), results, strict=True):
        if isinstance(result, BaseException):
            raise await _failure(reward, arguments, result) from result
        out[reward.name] = _checked(reward, result, rows)
    return {reward.name: out[reward.name] for reward in rewards}


async def _call(reward: RewardFunction, arguments: dict[str, list]) -> Any:
    try:
        return reward.fn(**arguments)
    except Exception as error:  # whatever user code raises is reported with its place, never swallowed
        raise await _failure(reward, arguments, error) from error


async def _failure(reward: RewardFunction, arguments: dict[str, list], error: BaseException) -> RewardError:
    """Names the first row on which the function fails alone."""
    where = "on the batch as a whole"
    for i in range(len(arguments["prompts"])):
        one = {name: [values[i]] for name, values in arguments.items()}
        try:
            value = reward.fn(**one)
            if inspect.isawaitable(value):
                await value
        except Exception:  # only to find the row; the error of the real call is the one reported
            where = f"on row {i}: {str(arguments['completions'][i])[:200]!r}"
            break
    return RewardError(f"reward {reward.name!r} raised {type(error).__name__}: {error} ({where})")


def _checked(reward: RewardFunction, values: Any, rows: int) -> list[float | None]:
    if not isinstance(values, (list, tuple)) or len(values) != rows:
        got = f"{len(values)} values" if isinstance(values, (list, tuple)) else f"a {type(values).__name__}"
        raise RewardError(f"reward {reward.name!r} returned {got} for {rows} rows; return a list with one value a row")
    for i, value in enumerate(values):
        if value is not None and (not isinstance(value, Real) or not math.isfinite(value)):
            raise RewardError(f"reward {reward.name!r} returned {value!r} for row {i}; return a finite number or None")
    return [None if value is None else float(value) for value in values]


def combine(rewards: Sequence[RewardFunction], values: dict[str, list[float | None]]) -> list[float | None]:
    """Weighted sum of the components that apply to a row; None where none does."""
    out = []
    for row in zip(*(values[reward.name] for reward in rewards), strict=True):
        parts = [reward.weight * value for reward, value in zip(rewards, row, strict=True) if value is not None]
        out.append(sum(parts) if parts else None)
    return out
