"""The processes of an environment: one imports its module once, and is copied for each instance, which serves alone.

So an instance costs a few milliseconds and megabytes, steps beside the others, and takes none of them with it when it
hangs or dies. They import no torch.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import pickle
import random
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import TypeAdapter

from align.config.factories import load_object
from align.environments import text, tools
from align.environments.contract import (
    ANSWERS,
    LOADED,
    Answer,
    Build,
    Built,
    Describe,
    Description,
    Environment,
    Finish,
    Kind,
    Loaded,
    Request,
    Start,
)
from align.system.child import connect, limit_memory
from align.system.failure import Failure, attempt, short
from align.system.parent import die_with_parent
from align.system.pipe import receive, send

LACKS = re.compile(r"MemoryError|[Cc]annot allocate|failed to map segment")  # memory, of an import within its limit

MEMORY, SECONDS = "environment.memory_gib", "environment.seconds"  # what limits a call


@dataclass(frozen=True)
class Hire:
    """Asks for a process of one more instance; its socket follows."""


@dataclass(frozen=True)
class Dismiss:
    """Ends the processes of instances; `wait_s` is for one that is on its way out by itself."""

    processes: list[int]
    wait_s: float = 0.0


HIRED = TypeAdapter(int | Failure)  # its process id

DISMISSED = TypeAdapter(list[int | None])  # how each ended: its exit code, or minus a signal; None where it had not


def serve(pipe: int, parent: int) -> None:
    """Import the environment's module and make processes of instances until the pipe is closed.

    `pipe` is the file descriptor of a socket, `parent` the id of the trainer's process. The first message is
    (environment, limits).
    """
    connection = connect(pipe, parent)
    if connection is None:
        return
    os.register_at_fork(after_in_child=connection.close)  # only this process answers
    try:
        number, message = receive(connection)
        environment, limits = pickle.loads(message)  # only the trainer writes to the pipe
        limit_memory(limits.memory_gib)
        start = time.monotonic()
        factory = attempt(partial(load, environment.path), MEMORY)
        loaded = factory if isinstance(factory, Failure) else Loaded(time.monotonic() - start)
        send(connection, number, LOADED.dump_json(loaded))
        gc.collect()
        gc.freeze()  # else the collector of each copy would touch all that they share
        hired: set[int] = set()
        killed: set[int] = set()  # the system takes its time to end them where the machine is busy
        while True:
            number, message = receive(connection)
            request = pickle.loads(message)
            if isinstance(request, Hire):
                _, files, _, _ = socket.recv_fds(connection, 1, 1)
                os.set_inheritable(files[0], False)  # a program that user code starts must not hold it
                process = _hire(files[0], environment, factory)
                hired |= {process} if isinstance(process, int) else set()
                send(connection, number, HIRED.dump_json(process))
            else:
                ended = [_dismiss(one, request.wait_s) if one in hired else None for one in request.processes]
                hired, killed = hired - set(request.processes), killed | (hired & set(request.processes))
                send(connection, number, DISMISSED.dump_json(ended))
            killed = {one for one in killed if not _reaped(one)}
    except EOFError:
        return


def load(path: str) -> Callable | Failure:
    """Import what makes instances. A `Failure` where it can make none, or not in copies of this process."""
    try:
        factory = load_object(path)
    except ValueError as error:
        hint = f"; raise {MEMORY} if it needs more" if LACKS.search(str(error)) else ""
        return Failure(short(str(error)) + hint)
    if not callable(factory):
        return Failure(f"{path} is neither a class nor a function that makes an environment")
    running = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if running:
        what = f"importing {path.partition(':')[0]} left threads running ({short(', '.join(running))})"
        return Failure(f"{what}, which the process of an instance would not have; start them in __init__")
    return factory


def live(connection: socket.socket, environment: Environment, factory: Callable) -> None:
    """Serve as one instance, which is made for the first request, until the pipe is closed."""
    me, made = os.getpid(), []
    with asyncio.Runner() as runner:
        while True:
            number, message = receive(connection)
            request = pickle.loads(message)  # only the trainer writes to the pipe
            if isinstance(request, Build):
                found = attempt(partial(build, environment, factory, made), MEMORY)
            else:
                found = attempt(partial(answer, environment, *made, request, runner.run), MEMORY)
            if os.getpid() != me:
                os._exit(0)  # a copy that user code made of this process, and that came back here
            send(connection, number, written(ANSWERS[type(request)], found))


def written(kind: TypeAdapter, found: Answer | Failure) -> bytes:
    """An answer in JSON; in its place the `Failure` of one that JSON cannot hold, or for which memory is too short."""
    body = attempt(partial(kind.dump_json, found), MEMORY)
    return kind.dump_json(body) if isinstance(body, Failure) else body


def build(environment: Environment, factory: Callable, made: list) -> Built:
    """Make the instance and put it into `made`. Raises whatever user code raises."""
    _seed(0)  # so that all instances are alike
    start = time.monotonic()
    made.append(factory(**environment.args))
    return Built(time.monotonic() - start)


def answer(environment: Environment, instance: Any, request: Request, run: tools.Run) -> Answer | Failure:
    """What an instance answers to a request. Raises whatever user code raises."""
    kind = environment.contract or kind_of(instance)
    contract = {"tools": tools, "text": text}[kind]
    if isinstance(request, Describe):
        return describe(instance, kind)
    if isinstance(request, Start):
        _seed(request.seed)
        return contract.reset(instance, request, run)
    if isinstance(request, Finish):
        return contract.finish(instance, run)
    return contract.step(instance, request, run)


def kind_of(instance: Any) -> Kind:
    """The contract that an instance follows, as far as it can be seen."""
    return "text" if inspect.isroutine(getattr(type(instance), "step", None)) else "tools"


def describe(instance: Any, kind: Kind) -> Description | Failure:
    """What an environment offers. Raises `ValueError` for a tool that cannot be shown to a model."""
    name = type(instance).__name__
    for method in ("reset", *(["step"] if kind == "text" else [])):
        if not callable(getattr(instance, method, None)):
            return Failure(f"{name} has no method {method}, so it is no environment of the contract {kind!r}")
    if kind == "text":
        return Description(name, kind, [], False)
    return Description(name, kind, tools.schemas(instance), tools.scores(instance))


def _seed(seed: int) -> None:
    """Set the global random states, so that an episode does not depend on the instance that plays it."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def _hire(file: int, environment: Environment, factory: Callable) -> int | Failure:
    """The id of a new process, a copy of this one, that serves as an instance through the socket `file`."""
    me = os.getpid()
    try:
        process = os.fork()
    except OSError as error:
        os.close(file)
        return Failure(f"its process cannot be started: {error}")
    if process:
        os.close(file)
        return process
    try:  # nothing of this copy may come back into the loop of the other
        os.setsid()  # a group to kill
        die_with_parent()
        if os.getppid() == me:
            with socket.socket(fileno=file) as connection:
                os.register_at_fork(after_in_child=connection.close)
                live(connection, environment, factory)
    except (EOFError, BrokenPipeError):
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _dismiss(process: int, wait_s: float) -> int | None:
    """Kill a process and those of its group; the code with which it had ended by itself, None where it had not.

    It stays a zombie until it is reaped, so that its id is no other's.
    """
    ended = _wait(process, wait_s)
    for kill in (os.killpg, os.kill):  # it may not have made its group yet
        with suppress(ProcessLookupError):
            kill(process, signal.SIGKILL)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _wait(process: int, seconds: float) -> os.waitid_result | None:
    """How a process ended within so many seconds, if it did. It is looked at once at least, and its id stays taken."""
    late = time.monotonic() + seconds
    while (ended := os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT | os.WNOHANG)) is None:
        if time.monotonic() >= late:
            return None
        time.sleep(0.002)
    return ended


def _reaped(process: int) -> bool:
    """Whether a process has ended, which frees its id."""
    return os.waitpid(process, os.WNOHANG) != (0, 0)
