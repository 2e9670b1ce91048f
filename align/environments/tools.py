"""TRL's contract (`environment_factory` of TRL 1.16): public methods are tools, and an episode ends without a call."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any
from unittest import mock

from align.environments.contract import Call, Message, Observation, Opening, Outcome, Reply, Start, plain, said
from align.system.failure import Failure, number, shown

Run = Callable[[Coroutine], Any]  # runs a coroutine in the event loop of the process

OWN = ("reset", "get_reward")  # methods of the contract, which are no tools


class ToolError(str):
    """What the model is told of a call that failed."""

    @staticmethod
    def of(error: Exception) -> ToolError:
        """The text of an error, whatever its class makes of it."""
        try:
            return ToolError(str(error))
        except Exception:  # of the error's own class
            return ToolError(type(error).__name__)


def methods(instance: Any) -> dict[str, Callable]:
    """{name: bound method} of the tools, in TRL's order: functions of the class that are public, by name."""
    names = [name for name, _ in inspect.getmembers(type(instance), predicate=inspect.isfunction)]
    return {name: getattr(instance, name) for name in names if name not in OWN and not name.startswith("_")}


def schemas(instance: Any) -> list[dict]:
    """The JSON schema of each tool, by its docstring and its hints. Raises `ValueError` where they do not suffice."""
    from transformers.utils import chat_template_utils as made  # 2 s; only one process of an environment is asked

    out = []
    with mock.patch.object(made, "is_torch_available", return_value=False):  # it would import torch for each hint
        for name, method in methods(instance).items():
            try:
                out.append(made.get_json_schema(method))
            except (made.DocstringParsingException, made.TypeHintParsingException) as error:
                fix = "write Google's docstring, with each argument under Args:, and a type hint for each"
                raise ValueError(f"the tool {name} cannot be shown to a model: {error}; {fix}") from error
    return out


def scores(instance: Any) -> bool:
    """Whether the environment gives a reward of its own."""
    return inspect.isfunction(getattr(type(instance), "get_reward", None))


def reset(instance: Any, start: Start, run: Run) -> Opening:
    """Begin an episode. Raises whatever `reset` raises, and `ValueError` where it returns neither text nor None."""
    found = settled(instance.reset(**start.row), run)
    if not isinstance(found, str | None):
        raise ValueError(f"reset returned {shown(found)}; return a text or None")
    return Opening(said(found or ""))


def step(instance: Any, reply: Reply, run: Run) -> Observation:
    """Run the calls of a turn; without one the episode is over.

    As in TRL, calls of async tools run side by side once the others are done, and their messages come behind theirs.
    Whatever a tool raises is its message, but a lack of memory, which is our limit's.
    """
    tools = methods(instance)
    begun = [(call.name, _caught(partial(_begin, tools, call))) for call in reply.calls]
    results = [(name, found) for name, found in begun if not inspect.iscoroutine(found)]
    waiting = [(name, found) for name, found in begun if inspect.iscoroutine(found)]
    if waiting:
        results += zip((name for name, _ in waiting), run(_all([found for _, found in waiting])), strict=True)
    failed = sum(isinstance(found, ToolError) for _, found in results)
    messages = [Message("tool", _content(found), said(name)) for name, found in results]
    said("".join(message.content + message.name for message in messages))  # one limit for all
    return Observation(messages, None if messages else "terminated", calls=len(messages), failed_calls=failed)


def finish(instance: Any, run: Run) -> Outcome | Failure:
    """End an episode, with its reward where the environment has one. Raises whatever `get_reward` raises."""
    reward = number(settled(instance.get_reward(), run)) if scores(instance) else None
    return reward if isinstance(reward, Failure) else Outcome(attributes(instance), reward)


def attributes(instance: Any) -> dict[str, Any]:
    """The public attributes of an instance that are plain data: what rewards can read of it in another process."""
    return plain({name: value for name, value in getattr(instance, "__dict__", {}).items() if not name.startswith("_")})


def settled(value: Any, run: Run) -> Any:
    """The value, or what a coroutine returns."""
    return run(value) if inspect.iscoroutine(value) else value


def _begin(tools: Mapping[str, Callable], call: Call) -> Any:
    """Call a tool: its result, or the coroutine that gives it. Raises in TRL's words where there is none."""
    if call.kind != "function":
        return ToolError(f"Unsupported tool call type: {call.kind}")
    if call.name not in tools:
        raise ValueError(f"Tool {call.name} not found.")
    return tools[call.name](**call.arguments)


def _caught(step: Callable[[], Any]) -> Any:
    """What a step returns, or the error that the model is told."""
    try:
        return step()
    except MemoryError:
        raise
    except Exception as error:
        return ToolError.of(error)


async def _all(coroutines: Sequence[Coroutine]) -> list[Any]:
    """What each coroutine returns, or the error that the model is told."""
    found = await asyncio.gather(*coroutines, return_exceptions=True)
    for one in found:
        if isinstance(one, MemoryError) or (isinstance(one, BaseException) and not isinstance(one, Exception)):
            raise one
    return [ToolError.of(one) if isinstance(one, Exception) else one for one in found]


def _content(found: Any) -> str:
    """The content of a tool's message, an error as TRL writes it."""
    return said(str({"error": str(found)}) if isinstance(found, ToolError) else str(found))
