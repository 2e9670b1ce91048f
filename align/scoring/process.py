"""The process of a reward function: it loads the function, calls it on rows and sends numbers back.

The trainer starts it (`worker.py`); it imports neither torch nor an engine. What it sends is JSON, which is only read:
its memory belongs to user code, so nothing that it says may run in the trainer.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from align.config.factories import load_object
from align.config.recipe import RewardLimits
from align.system.child import connect, limit_memory
from align.system.failure import LARGEST, Failure, attempt, failure, number, short
from align.system.failure import too_slow as slower_than
from align.system.pipe import receive, send

MOST = 20  # notes of `ready`

MEMORY = "reward_limits.memory_gib"


@dataclass(frozen=True)
class Argument:
    """A parameter of a reward function."""

    name: str
    kind: int  # of `inspect.Parameter`
    required: bool


@dataclass(frozen=True)
class Ready:
    """Tells the trainer that the function is loaded, and how it is called."""

    is_async: bool
    parameters: list[Argument]
    seconds: float  # that loading it took
    notes: list[str] = field(default_factory=list)  # what its `ready` returned


Value = float | None | Failure  # None: the reward does not apply to the row

Arguments = Mapping[str, Sequence]  # {name: one value a row}

READY = TypeAdapter(Ready | Failure)  # the answer to the first message

ANSWER = TypeAdapter(list[Annotated[float, Field(ge=-LARGEST, le=LARGEST)] | None | Failure] | Failure)


def serve(pipe: int, parent: int) -> None:
    """Answer calls that come through the pipe until it is closed; the first message is (reward, limits).

    `pipe` is the file descriptor of a socket, `parent` the id of the trainer's process.
    """
    connection, me = connect(pipe, parent), os.getpid()
    if connection is None:
        return
    os.register_at_fork(after_in_child=connection.close)  # only this process answers

    def reply(number: int, kind: TypeAdapter, found: Any) -> None:
        if os.getpid() != me:
            os._exit(0)  # a copy that the function made of this process, and that came back here
        send(connection, number, kind.dump_json(found))

    try:
        number, message = receive(connection)
        reward, limits = pickle.loads(message)  # only the trainer writes to the pipe
        limit_memory(limits.memory_gib)
        start = time.monotonic()
        fn = attempt(lambda: load(reward.path), MEMORY)
        described = fn if isinstance(fn, Failure) else attempt(lambda: describe(fn, start), MEMORY)
        reply(number, READY, described)
        while True:
            number, message = receive(connection)
            reply(number, ANSWER, attempt(partial(_answer, fn, reward.args, limits, message), MEMORY))
    except EOFError:
        return


def load(path: str) -> Callable | Failure:
    """Load the function and look at it. A `Failure` for what is no reward function."""
    try:
        fn = load_object(path)
    except ValueError as error:
        return Failure(short(str(error)))
    if not callable(fn):
        return Failure(f"{path} is not a function")
    name = path.rpartition(":")[2]
    try:
        given = {argument.name for argument in parameters(fn)}
    except (TypeError, ValueError):  # written in C, mostly
        given = set()
    if not given & {"completions", "completion_ids"}:
        what = f"{path} takes no completions, so it is no reward function"
        return Failure(f"{what}; write def {name.rpartition('.')[2]}(completions, **columns), or functools.wraps")
    return fn


def describe(fn: Callable, start: float) -> Ready:
    """How the function is called. Its attribute `ready`, if any, is called, which raises where this machine lacks
    something, and may return a list of texts on what holds less than it should."""
    said = fn.ready() if hasattr(fn, "ready") else None
    notes = [short(note) for note in said if isinstance(note, str)] if isinstance(said, list) else []
    return Ready(is_async(fn), parameters(fn), time.monotonic() - start, notes[:MOST])


def parameters(fn: Callable) -> list[Argument]:
    """The parameters of a function, of a wrapped one those of what is wrapped. Raises `TypeError` and `ValueError`."""
    return [Argument(p.name, int(p.kind), p.default is p.empty) for p in inspect.signature(fn).parameters.values()]


def is_async(fn: Callable) -> bool:
    """Whether calling it gives a coroutine."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)


def rate(fn: Callable, arguments: Arguments, args: Mapping[str, Any], rows: int) -> list[Value]:
    """Call the function on all rows; one value a row. Its own `args` win over a column of the same name.

    A value that is no number of float32 fails its row. Raises whatever the function raises, and `ValueError` where it
    does not return one value a row.
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
                return too_slow(limits.seconds) if clock.expired() else failure(error, MEMORY)
            return value

    return await asyncio.gather(*map(one, range(rows)))


def too_slow(seconds: float) -> Failure:
    """The failure of a call that took longer than `reward_limits.seconds`."""
    return slower_than(seconds, "reward_limits.seconds")


def rows_of(arguments: Arguments, rows: range) -> Arguments:
    """The arguments of a run of rows."""
    return {name: values[rows.start : rows.stop] for name, values in arguments.items()}


def row_of(arguments: Arguments, row: int) -> Arguments:
    """The arguments of one row, each a list of one value."""
    return rows_of(arguments, range(row, row + 1))


def checked(values: Any, rows: int) -> list[Value]:
    """Turn what a function returned into one value a row. Raises `ValueError` where it is not one value a row."""
    values = values.tolist() if hasattr(values, "tolist") else values  # arrays and tensors
    if not isinstance(values, (list, tuple)) or len(values) != rows:
        got = f"{len(values)} values" if isinstance(values, (list, tuple)) else f"a {type(values).__name__}"
        raise ValueError(f"returned {got} for {rows} rows; return a list with one value a row")
    return [number(value) for value in values]


def _answer(fn: Callable, args: Mapping[str, Any], limits: RewardLimits, message: bytes) -> list[Value]:
    """The values of one call."""
    arguments, rows = pickle.loads(message)  # only the trainer writes to the pipe
    if is_async(fn):
        return asyncio.run(rate_each(fn, arguments, args, rows, limits))
    return rate(fn, arguments, args, rows)
