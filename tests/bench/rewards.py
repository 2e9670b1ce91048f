"""What a call of a reward in its own process costs beyond the function: ms a call, rows as text, sync and async.

python tests/bench/rewards.py
"""

import os
import statistics
import sys
import time
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from align.config.recipe import RewardFunction, RewardLimits  # noqa: E402
from align.data.prompts import Prompt, Response  # noqa: E402
from align.scoring.score import score_rows  # noqa: E402
from align.scoring.worker import Worker  # noqa: E402

CASES = [("lengths", 1, 1), ("lengths", 64, 1000), ("lengths", 512, 8000), ("picky", 64, 1)]  # reward, rows, characters
CALLS = 100


def milliseconds(name: str, rows: int, characters: int) -> float:
    """The median of `CALLS` calls."""
    reward = RewardFunction(name, f"support.reward_functions:{name}", 1.0)
    prompts = [Prompt([1], "q", "q", {"answer": "7"})] * rows
    asked = prompts, [Response([1], [-1.0], False)] * rows, ["x" * characters] * rows, rows
    taken = []
    with closing(Worker(reward, RewardLimits())) as worker:
        score_rows([worker], *asked)
        for _ in range(CALLS):
            start = time.perf_counter()
            score_rows([worker], *asked)
            taken.append(time.perf_counter() - start)
    return 1000 * statistics.median(taken)


def main() -> None:
    print(f"{len(os.sched_getaffinity(0))} cores")
    for name, rows, characters in CASES:
        print(f"{name}: {rows} rows of {characters} characters: {milliseconds(name, rows, characters):.2f} ms")


if __name__ == "__main__":
    main()
