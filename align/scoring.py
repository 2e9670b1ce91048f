"""Calling reward functions with TRL's signature, and adding up what they return."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Iterable, Sequence
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
    values = {reward.name: _call(reward, arguments) for reward in rewards}
    pending = {name: value for name, value in values.items() if inspect.isawaitable(value)}
    results = asyncio.run(_gathered(pending.values())) if pending else []
    values |= dict(zip(pending, results, strict=True))
    for reward in rewards:
        if isinstance(values[reward.name], BaseException):
            raise _failure(reward, arguments, values[reward.name]) from values[reward.name]
    return {reward.name: _checked(reward, values[reward.name], len(prompts)) for reward in rewards}


async def _gathered(pending: Iterable[Awaitable]) -> list[Any]:
    """Async rewards side by side; an exception stands where its result would."""
    return await asyncio.gather(*pending, return_exceptions=True)


def _call(reward: RewardFunction, arguments: dict[str, list]) -> Any:
    """What the function returns or raises. Its own arguments win over a column of the same name."""
    try:
        return reward.fn(**{**arguments, **reward.args})
    except Exception as error:  # whatever user code raises is reported with its place, never swallowed
        return error


def _failure(reward: RewardFunction, arguments: dict[str, list], error: BaseException) -> RewardError:
    """Names the first row on which the function fails alone in the same way."""
    where = "on the batch as a whole"
    for i in range(len(arguments["prompts"])):
        value = _call(reward, {name: [values[i]] for name, values in arguments.items()})
        if inspect.isawaitable(value):
            (value,) = asyncio.run(_gathered([value]))
        if type(value) is type(error) and str(value) == str(error):
            where = f"on row {i}: {str(arguments['completions'][i])[:200]!r}"
            break
    return RewardError(f"reward {reward.name!r} raised {type(error).__name__}: {error} ({where})")


def _checked(reward: RewardFunction, values: Any, rows: int) -> list[float | None]:
    values = values.tolist() if hasattr(values, "tolist") else values  # arrays and tensors
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
