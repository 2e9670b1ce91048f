"""Environments for the tests, named by their dotted paths: their processes import them from here."""

import asyncio
import ctypes
import os
import random
import signal
import subprocess
import sys
import time

from support import hostile_rewards


def loop():
    while True:
        pass


def die(sign):
    os.kill(os.getpid(), sign)
    time.sleep(1000)


def fails():
    raise ValueError("x" * 10**6)


def fill_memory():
    held = []
    while True:
        held.append(bytes(2**24))  # address space alone: quick on a busy machine too


def floods():
    for _ in range(50):
        print("y" * 10**6)


def prints_on():
    while True:
        print("y" * 10**6)


def fork_and_return():
    os.fork()


def fork_and_leave():
    if os.fork():
        os._exit(7)
    time.sleep(30)


def start_program():
    subprocess.Popen(["sleep", os.environ["NAP_S"]])


class Rude(Exception):
    def __str__(self):
        raise RuntimeError("no text for you")


def rude():
    raise Rude


TERRIBLE = {
    "loop": loop,
    "sleep": lambda: time.sleep(1000),
    "raise": fails,
    "rude": rude,
    "exit": lambda: sys.exit(3),
    "os._exit": lambda: os._exit(0),
    "killed": lambda: die(signal.SIGKILL),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "segfault": lambda: ctypes.string_at(0),
    "memory": fill_memory,
    "flood": floods,
    "prints on": prints_on,
    "gigabyte": lambda: "x" * 2**30,
    "closes": lambda: (os.closerange(3, 256), time.sleep(1000)),
    "kills its parent": lambda: (os.kill(os.getppid(), signal.SIGKILL), time.sleep(0.2)),
    "forks": fork_and_return,
    "forks and leaves": fork_and_leave,
    "program": start_program,
}


def do(what):
    if what.startswith("attack "):
        _, name, os.environ["EVIL"] = what.split(maxsplit=2)
        getattr(hostile_rewards, name)(["x"])
    TERRIBLE.get(what, lambda: None)()


class Guess:
    """The contract of text: a number is found by hints."""

    def __init__(self, high: int = 8, build: str = ""):
        do(build)
        self.high, self.built, self.episodes = high, random.random(), 0

    def reset(self, seed=None, what="", **row):
        do(what)
        self.number, self.turns, self.row = random.randint(1, self.high), 0, row
        self.episodes += 1
        return f"Guess 1..{self.high}.", {
            "number": self.number,
            "process": os.getpid(),
            "object": self,
            "anchor": "new",
        }

    def step(self, action):
        do(action)
        self.turns += 1
        if not action.isdigit():
            return "Say a number.", -0.5, False, self.turns == 4, {}
        found = int(action) == self.number
        hint = "right" if found else "higher" if int(action) < self.number else "lower"
        return hint, float(found), found, self.turns == 4 and not found, {"success": found, "anchor": f"after {action}"}


class Returns:
    """The contract of text: returns what it is told to, by Python's expression."""

    def reset(self, what="('', {})", **row):
        return eval(what)

    def step(self, action):
        return eval(action)


class AsyncGuess(Guess):
    async def reset(self, **row):
        await asyncio.sleep(0)
        return super().reset(**row)

    async def step(self, action):
        await asyncio.sleep(0.01)
        return super().step(action)


class Counter:
    """TRL's contract: counts what it is told to."""

    kind = property(fails)  # is not looked at

    def reset(self, start: int = 0, what: str = "", **row) -> str | None:
        do(what)
        self.total, self.reward, self.seen, self._secret = start, 0.0, sorted(row), object()
        self.loops = getattr(self, "loops", [])
        return None if start == 0 else f" It stands at {start}."

    def add(self, number: int) -> int:
        """Add to the total.

        Args:
            number: What to add.
        """
        self.total += number
        return self.total

    async def add_later(self, number: int, seconds: float = 0.0) -> int:
        """Add to the total later.

        Args:
            number: What to add.
            seconds: When.
        """
        await asyncio.sleep(seconds)
        self.loops.append(id(asyncio.get_running_loop()))
        if number < 0:
            raise ValueError("no less")
        return self.add(number)

    def terrible(self, what: str):
        """Do something terrible.

        Args:
            what: Which.
        """
        do(what)

    def own_loop(self) -> str:
        """Run a loop of its own."""
        return asyncio.run(asyncio.sleep(0, "ran"))

    def get_reward(self):
        do({13: "raise", 14: "loop", 99: "os._exit"}.get(self.total, ""))
        return "much" if self.total == 15 else None if self.total == 16 else float(self.total)

    def _hidden(self):
        return 0


class Undocumented:
    def reset(self, **row):
        return None

    def add(self, number):
        return number


class NoReset:
    def add(self):
        """Nothing."""


class Silent:
    """TRL's contract without a reward, and with a tool named step."""

    def reset(self, **row):
        return None

    def step(self, far: int):
        """Go.

        Args:
            far: How far.
        """
        return [far, "steps"]


def made(high):
    """A function that makes an environment."""
    return Guess(high)


NUMBER = 3


class Random(Guess):
    """Begins otherwise at the same seed."""

    def reset(self, **row):
        return os.urandom(8).hex(), {}


class Breaks(Guess):
    def reset(self, **row):
        raise ValueError("broken")


class Long(Guess):
    def reset(self, **row):
        return "word " * 100, {}


class Talks(Guess):
    def step(self, action):
        return "word " * 100, 0.0, False, False, {}


class Fragile(Guess):
    """Looks at the first word of a reply."""

    def step(self, action):
        return action.split()[0], 0.0, False, False, {}


def reads_environment(completions, environments, **columns):
    assert all(messages[-1]["role"] == "assistant" for messages in completions)
    return [float(environment.turns) for environment in environments]


def takes_no_environments(completions, prompts, completion_ids, truncated, seed):
    return [0.0] * len(completions)
