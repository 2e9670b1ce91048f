"""What a call of a reward in its own process costs beyond the function: ms a call, rows as text, sync and async.
Then the seconds of a call whose function takes 50 ms a row, with more and more processes (`reward_limits.processes`).

python tests/bench/rewards.py
"""

import os
import statistics
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from align.config.recipe import RewardFunction, RewardLimits  # noqa: E402
from align.data.prompts import Prompt, Response  # noqa: E402
from align.scoring.score import score_rows  # noqa: E402
from align.scoring.worker import Worker  # noqa: E402

CASES = [("lengths", 1, 1), ("lengths", 64, 1000), ("lengths", 512, 8000), ("picky", 64, 1)]  # reward, rows, characters
CALLS = 100

SLOW = ("judged", 64, 1000)

PROCESSES = (1, 2, 4, 8)


def milliseconds(name: str, rows: int, characters: int, processes: int = 1, calls: int = CALLS) -> float:
    """The median of so many calls."""
    reward = RewardFunction(name, f"support.reward_functions:{name}", 1.0)
    prompts = [Prompt([1], "q", "q", {"answer": "7"})] * rows
    asked = prompts, [Response([1], [-1.0], False)] * rows, ["x" * characters] * rows, rows
    taken = []
    with ExitStack() as stack:
        workers = [stack.enter_context(closing(Worker(reward, RewardLimits()))) for _ in range(processes)]
        score_rows(workers, *asked)
        for _ in range(calls):
            start = time.perf_counter()
            score_rows(workers, *asked)
            taken.append(time.perf_counter() - start)
    return 1000 * statistics.median(taken)


def main() -> None:
    print(f"{len(os.sched_getaffinity(0))} cores")
    for name, rows, characters in CASES:
        print(f"{name}: {rows} rows of {characters} characters: {milliseconds(name, rows, characters):.2f} ms")
    name, rows, characters = SLOW
    for processes in PROCESSES:
        seconds = milliseconds(*SLOW, processes, calls=3) / 1000
        print(f"{name}: {rows} rows of {characters} characters, {processes} processes: {seconds:.2f} s")


if __name__ == "__main__":
    main()
