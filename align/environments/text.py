"""The contract of text environments: Gymnasium's five values, with text for what is seen and what is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.environments.contract import Message, Observation, Opening, Outcome, Reply, Start, plain, said
from align.environments.tools import Run, attributes, settled
from align.system.failure import Failure, number, shown

FIVE = "return (text, reward, terminated, truncated, info)"


def reset(instance: Any, start: Start, run: Run) -> Opening:
    """Begin an episode. Raises whatever `reset` raises, and `ValueError` where it does not return (text, info)."""
    found = settled(instance.reset(**start.row), run)
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], str) and _is_info(found[1])):
        fix = "return (text, info); where step is a tool of TRL's contract, write environment.contract: tools"
        raise ValueError(f"reset returned {shown(found)}; {fix}")
    text, info = found
    return Opening(said(text), plain(info), _anchor(info))


def step(instance: Any, reply: Reply, run: Run) -> Observation | Failure:
    """Do what the policy said. Raises whatever `step` raises, and `ValueError` where it does not return five values.

    An environment that says both has terminated: nothing more would have come of it.
    """
    found = settled(instance.step(reply.text), run)
    if not (isinstance(found, tuple) and len(found) == 5 and isinstance(found[0], str) and _is_info(found[4])):
        raise ValueError(f"step returned {shown(found)}; {FIVE}")
    text, reward, terminated, truncated, info = found
    reward, terminated, truncated = number(reward), _flag(terminated, "terminated"), _flag(truncated, "truncated")
    if isinstance(reward, Failure):
        return reward
    ended = "terminated" if terminated else "truncated" if truncated else None
    success = None if info.get("success") is None else _flag(info["success"], 'info["success"]')
    return Observation([Message("user", said(text))], ended, reward, success, plain(info), _anchor(info))


def finish(instance: Any, run: Run) -> Outcome:
    """End an episode; its rewards are those of its turns."""
    return Outcome(attributes(instance))


def _is_info(value: Any) -> bool:
    return isinstance(value, Mapping)


def _flag(value: Any, name: str) -> bool:
    """The value as a bool, NumPy's too. Raises `ValueError` for all else."""
    value = value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value
    if not isinstance(value, bool):
        raise ValueError(f"step returned {shown(value)} as {name}; write True or False")
    return value


def _anchor(info: Mapping) -> str | None:
    """What the environment calls the state, if it does."""
    return None if info.get("anchor") is None else said(str(info["anchor"]))
