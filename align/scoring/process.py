"""The process of a reward function: it loads the function, calls it on rows and sends numbers back.

The trainer starts it (`worker.py`); it imports neither torch nor an engine.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import pickle
import reprlib
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from numbers import Real
from typing import Any

from align.config.factories import load_object
from align.config.recipe import RewardLimits
from align.system.parent import die_with_parent

LONGEST = 600  # characters of a reason; an error of a reward may be of any size


@dataclass(frozen=True)
class Failure:
    """Why a call gave no value."""

    why: str


@dataclass(frozen=True)
class Ready:
    """Tells the trainer that the function is loaded."""

    is_async: bool


Value = float | None | Failure  # None: the reward does not apply to the row

Arguments = Mapping[str, Sequence]  # {name: one value a row}


def serve(pipe: int, parent: int) -> None:
    """Answer calls that come through the pipe until it is closed; the first message is (reward, limits).

    `pipe` is a file descriptor, `parent` the id of the trainer's process.
    """
    os.set_inheritable(pipe, False)
    die_with_parent()  # leaves no orphan, not even of a trainer that was killed
    if os.getppid() != parent:
        return
    connection = Connection(pipe)
    reward, limits = connection.recv()
    space = round(limits.memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    fn = attempt(lambda: load(reward.path))
    connection.send(fn if isinstance(fn, Failure) else Ready(is_async(fn)))
    while True:
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        connection.send(attempt(partial(_answer, fn, reward.args, limits, message)))


def load(path: str) -> Callable:
    """Load the function and call its attribute `ready`, if any, which raises where this machine lacks something."""
    fn = load_object(path)
    if hasattr(fn, "ready"):
        fn.ready()
    return fn


def is_async(fn: Callable) -> bool:
    """Whether calling it gives a coroutine."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)


def attempt(step: Callable[[], Any]) -> Any:
    """Return what user code returns, or a `Failure` for whatever it raises, `SystemExit` included."""
    try:
        return step()
    except BaseException as error:
        return failure(error)


def failure(error: BaseException) -> Failure:
    """Put an error of user code into at most `LONGEST` characters."""
    hint = "; raise reward_limits.memory_gib if it needs more" if isinstance(error, MemoryError) else ""
    return Failure(f"{type(error).__name__}: {error}"[:LONGEST] + hint)


def rate(fn: Callable, arguments: Arguments, args: Mapping[str, Any], rows: int) -> list[Value]:
    """Call the function on all rows; one value a row. Its own `args` win over a column of the same name.

    A value that is no number fails its row. Raises whatever the function raises, and `ValueError` where it does not
    return one value a row.
    """
    return checked(fn(**{**arguments, **args}), rows)


async def rate_each(
    fn: Callable, arguments: Arguments, args: Mapping[str, Any], rows: int, limits: RewardLimits
) -> list[Value]:
    """Call an async function on each row alone, `limits.concurrency` of them at a time; one value a row."""
    gate = asyncio.Semaphore(limits.concurrency)

    async def one(row: int) -> Value:
        async with gate:
            clock = asyncio.timeout(limits.seconds)
            try:
                async with clock:
                    (value,) = checked(await fn(**{**row_of(arguments, row), **args}), 1)
            except Exception as error:  # of user code; the other rows go on
                return too_slow(limits.seconds) if clock.expired() else failure(error)
            return value

    return await asyncio.gather(*map(one, range(rows)))


def too_slow(seconds: float) -> Failure:
    """The failure of a call that took longer than `reward_limits.seconds`."""
    return Failure(f"took longer than {seconds:g} s; raise reward_limits.seconds if it needs more")


def row_of(arguments: Arguments, row: int) -> Arguments:
    """The arguments of one row, each a list of one value."""
    return {name: [values[row]] for name, values in arguments.items()}


def checked(values: Any, rows: int) -> list[Value]:
    """Turn what a function returned into one value a row. Raises `ValueError` where it is not one value a row."""
    values = values.tolist() if hasattr(values, "tolist") else values  # arrays and tensors
    if not isinstance(values, (list, tuple)) or len(values) != rows:
        got = f"{len(values)} values" if isinstance(values, (list, tuple)) else f"a {type(values).__name__}"
        raise ValueError(f"returned {got} for {rows} rows; return a list with one value a row")
    return [_number(value) for value in values]


def _answer(fn: Callable, args: Mapping[str, Any], limits: RewardLimits, message: bytes) -> list[Value]:
    """The values of one call."""
    arguments, rows = pickle.loads(message)  # only the trainer writes to the pipe
    if is_async(fn):
        return asyncio.run(rate_each(fn, arguments, args, rows, limits))
    return rate(fn, arguments, args, rows)


def _number(value: Any) -> Value:
    if value is None:
        return None
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    return Failure(f"returned {reprlib.repr(value)[:LONGEST]}; return a finite number or None")
