"""The process of a reward function: it loads the function, calls it on rows and sends numbers back.

The trainer starts it (`worker.py`); it imports neither torch nor an engine. What it sends is JSON, which is only read:
its memory belongs to user code, so nothing that it says may run in the trainer.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import pickle
import reprlib
import resource
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from align.config.factories import load_object
from align.config.recipe import RewardLimits
from align.scoring.pipe import receive, send
from align.system.blame import user_line
from align.system.parent import die_with_parent

LONGEST = 600  # characters of a reason; an error of a reward may be of any size

MOST = 20  # notes of `ready`

LARGEST = (2 - 2**-23) * 2.0**127  # of float32: the batch holds rewards in it


@dataclass(frozen=True)
class Failure:
    """Why a call gave no value."""

    why: str
    out_of_memory: bool = False  # what it left behind may be broken, or fill the memory


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
    os.set_inheritable(pipe, False)
    die_with_parent()  # leaves no orphan, not even of a trainer that was killed
    if os.getppid() != parent:
        return
    connection, me = socket.socket(fileno=pipe), os.getpid()
    os.register_at_fork(after_in_child=connection.close)  # only this process answers

    def reply(number: int, kind: TypeAdapter, found: Any) -> None:
        if os.getpid() != me:
            os._exit(0)  # a copy that the function made of this process, and that came back here
        send(connection, number, kind.dump_json(found))

    try:
        number, message = receive(connection)
        reward, limits = pickle.loads(message)  # only the trainer writes to the pipe
        space = round(limits.memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        start = time.monotonic()
        fn = attempt(lambda: load(reward.path))
        described = fn if isinstance(fn, Failure) else attempt(lambda: describe(fn, start))
        reply(number, READY, described)
        while True:
            number, message = receive(connection)
            reply(number, ANSWER, attempt(partial(_answer, fn, reward.args, limits, message)))
    except EOFError:
        return


def load(path: str) -> Callable | Failure:
    """Load the function and look at it. A `Failure` for what is no reward function."""
    try:
        fn = load_object(path)
    except ValueError as error:
        return Failure(_short(str(error)))
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
    notes = [_short(note) for note in said if isinstance(note, str)] if isinstance(said, list) else []
    return Ready(is_async(fn), parameters(fn), time.monotonic() - start, notes[:MOST])


def parameters(fn: Callable) -> list[Argument]:
    """The parameters of a function, of a wrapped one those of what is wrapped. Raises `TypeError` and `ValueError`."""
    return [Argument(p.name, int(p.kind), p.default is p.empty) for p in inspect.signature(fn).parameters.values()]


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
    """Put an error of user code, with its line, into about `LONGEST` characters."""
    line, memory = user_line(error), isinstance(error, MemoryError)
    hint = "; raise reward_limits.memory_gib if it needs more" if memory else ""
    try:
        what = _short(f"{type(error).__name__}: {error}".removesuffix(": "))
    except Exception:  # of the error's own class
        what = f"{type(error).__name__}, which cannot be shown"
    return Failure(what + (f" ({line})" if line else "") + hint, memory)


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
                return too_slow(limits.seconds) if clock.expired() else failure(error)
            return value

    return await asyncio.gather(*map(one, range(rows)))


def too_slow(seconds: float) -> Failure:
    """The failure of a call that took longer than `reward_limits.seconds`."""
    return Failure(f"took longer than {seconds:g} s; raise reward_limits.seconds if it needs more")


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
    return [_number(value) for value in values]


def _answer(fn: Callable, args: Mapping[str, Any], limits: RewardLimits, message: bytes) -> list[Value]:
    """The values of one call."""
    arguments, rows = pickle.loads(message)  # only the trainer writes to the pipe
    if is_async(fn):
        return asyncio.run(rate_each(fn, arguments, args, rows, limits))
    return rate(fn, arguments, args, rows)


def _number(value: Any) -> Value:
    """The value as a float, None where it is None, a `Failure` for all that float32 does not hold."""
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:  # an integer beyond all floats
        number = 2 * LARGEST
    if abs(number) <= LARGEST:
        return number
    fix = f"return a number within float32, up to {LARGEST:.2g}" if math.isfinite(number) else "return a finite number"
    return Failure(f"returned {_shown(value)}; {fix} or None")


def _shown(value: Any) -> str:
    """The value in short."""
    try:
        return _short(reprlib.repr(value))
    except Exception:  # of the user's class; or an integer of more digits than Python prints
        return f"a value of type {type(value).__name__}"


def _short(text: str) -> str:
    """At most `LONGEST` characters of a text, in UTF-8."""
    return text[:LONGEST].encode(errors="replace").decode()
