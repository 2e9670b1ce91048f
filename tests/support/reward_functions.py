"""Reward functions for the tests, named by their dotted paths: their processes import them from here."""

import asyncio
import ctypes
import os
import signal
import sys
import time
from pathlib import Path


def lengths(completions, **columns):
    return [float(len(text)) for text in completions]


def process(completions, **columns):
    return [float(os.getpid())] * len(completions)


def first_id(completion_ids, **columns):
    return [float(ids[0]) for ids in completion_ids]


def argument(completions, *, level, **columns):
    """`level` is a column, or a number of the recipe."""
    return list(map(float, level)) if isinstance(level, list) else [float(level)] * len(completions)


def unless_two(completions, **columns):
    """None where the text is "two": does not apply."""
    return [None if text == "two" else 1.0 for text in completions]


def planted(completions, **columns):
    """Does what the text says, where it says something terrible."""
    return [TERRIBLE.get(text, lambda: 1.0)() for text in completions]


def loop():
    while True:
        pass


def memory():
    return float(len(bytearray(2**40)))


def gradual_memory():
    held = []
    while True:
        held.append(bytes(2**24))  # address space alone: quick on a busy machine too


def raises():
    raise ValueError("x" * 10**6)


def prints():
    for _ in range(200):
        print("y" * 10**6)
        print("y" * 10**6, file=sys.stderr)
    return 1.0


def sleeping_child():
    """A program that outlives its parent, unless its group is ended."""
    os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "987654")
    loop()


TERRIBLE = {
    "loop": loop,
    "memory": memory,
    "gradual memory": gradual_memory,
    "segfault": lambda: ctypes.string_at(0),
    "raises": raises,
    "nan": lambda: float("nan"),
    "huge value": lambda: "z" * 10**7,
    "huge number": lambda: 10**400,
    "prints": prints,
    "sys.exit": lambda: sys.exit(0),
    "os._exit": lambda: os._exit(0),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "child": sleeping_child,
}


def fragile(completion_ids, **columns):
    """Of responses as a model samples them, half do something terrible; the others are rated by their length."""
    print(f"asked about {len(completion_ids)}")
    kinds = ("loop", "memory", "segfault", "raises", "nan")
    return [TERRIBLE[kinds[n]]() if (n := sum(ids) % 10) < len(kinds) else len(ids) / 10 for ids in completion_ids]


def too_many(completions, **columns):
    return [1.0] * (10**6 if "many" in completions else len(completions))


def busy(completions, **columns):
    """Runs for ever, as a process that writes its id where the text says."""
    Path(completions[0]).write_text(str(os.getpid()))
    loop()


def not_ready(completions, **columns):
    return [1.0] * len(completions)


def _missing():
    raise RuntimeError("no judge here; apt-get install judge")


not_ready.ready = _missing


def noted(completions, **columns):
    return [1.0] * len(completions)


def _notes():
    return ["no limit of \x1b[31mthis", 3, "y" * 10_000]


noted.ready = _notes

running, most = 0, 0


async def crowd(completions, **columns):
    """The most calls that ran at once so far; each takes a while."""
    global running, most
    running += 1
    most = max(most, running)
    await asyncio.sleep(0.1)
    running -= 1
    return [float(most)] * len(completions)


async def picky(completions, **columns):
    (text,) = completions  # a row at a time
    if text == "sleep":
        await asyncio.sleep(1000)
    if text == "stubborn":
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                continue
    if text == "block":
        time.sleep(1000)
    if text == "raises":
        raise KeyError(text)
    if text == "exit":
        sys.exit(0)
    return [None if text == "none" else 1.0]


def judged(completions, **columns):
    """As a judge that takes 50 ms a response, outside this process."""
    time.sleep(0.05 * len(completions))
    return [1.0] * len(completions)


def slow(completions, **columns):
    time.sleep(0.5)
    return [1.0] * len(completions)
