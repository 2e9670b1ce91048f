"""What an instance of an environment costs: seconds to load and to start 64, memory of each, ms of a turn of all 64.

python tests/bench/environments.py

Those of textarena and skyrl-gym are measured where they are installed.
"""

import importlib.util
import os
import statistics
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from align.environments.contract import Call, Environment, Limits, Reply, Start  # noqa: E402
from align.environments.nursery import Nursery, ask  # noqa: E402
from align.system.failure import Failure  # noqa: E402

INSTANCES, TURNS = 64, 5

PROMPT = [{"role": "user", "content": "2 + 2?"}]

GAME = {"game": "GuessTheNumber-v0", "min_number": 1, "max_number": 1000, "max_turns": 20}

CASES = [  # name, package that it needs, path, arguments, row, reply
    ("text: tests' Guess", None, "support.environments:Guess", {"high": 1000}, {}, [Reply("0")] * TURNS),
    (
        "tools: tests' Counter",
        None,
        "support.environments:Counter",
        {},
        {},
        [Reply("", (Call("add", {"number": 1}),))] * TURNS,
    ),
    (
        "textarena: GuessTheNumber",
        "textarena",
        "align.environments.textarena:TextArena",
        GAME,
        {},
        [Reply(f"[{i + 1}]") for i in range(TURNS)],
    ),
    (
        "skyrl-gym: gsm8k_multi_turn",
        "skyrl_gym",
        "align.environments.skyrl_gym:SkyRLGym",
        {"id": "gsm8k_multi_turn"},
        {"prompt": PROMPT, "reward_spec": {"ground_truth": "4"}, "max_turns": 2 * TURNS},
        [Reply("#### 5")] * TURNS,
    ),
]


def timed(requests) -> float:
    """Seconds until all are answered. Raises `RuntimeError` for a failure."""
    start = time.monotonic()
    found = ask(requests)
    if failed := [one.why for one in found if isinstance(one, Failure)]:
        raise RuntimeError(failed[0])
    return time.monotonic() - start


def measured(path: str, args: dict, row: dict, replies: list[Reply]) -> list[float]:
    """(s until it is described, s to start all, ms to start them again, ms of a turn of all, MB of each)."""
    start = time.monotonic()
    with closing(Nursery(Environment("bench", path, args), Limits(memory_gib=2.0))) as nursery:
        nursery.wait()
        described = time.monotonic() - start
        all_of_them = [nursery.instance(i) for i in range(INSTANCES)]
        starts = [(one, Start(row, i)) for i, one in enumerate(all_of_them)]
        first, again = timed(starts), timed(starts)
        turn = statistics.median(timed([(one, reply) for one in all_of_them]) for reply in replies)
        memory = statistics.mean(psutil.Process(one.process).memory_full_info().pss for one in all_of_them)
    return [described, first, 1000 * again, 1000 * turn, memory / 2**20]


def main() -> None:
    print(f"{len(os.sched_getaffinity(0))} cores, {INSTANCES} instances")
    print("| environment | described, s | all started, s | reset again, ms | a turn of all, ms | each, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, package, *case in CASES:
        if package is None or importlib.util.find_spec(package):
            seconds, first, again, turn, memory = measured(*case)
            print(f"| {name} | {seconds:.1f} | {first:.2f} | {again:.0f} | {turn:.0f} | {memory:.1f} |", flush=True)
        else:
            print(f"| {name} | not installed | | | | |")


if __name__ == "__main__":
    main()
