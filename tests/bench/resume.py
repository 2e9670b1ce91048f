"""What a resumed run reads of its folder before it samples: bytes and seconds of each part, after 20,000 steps.

    PYTHONPATH=. python tests/bench/resume.py [GB of samples.jsonl]

The newest checkpoint is of step 19,000; the journal has the entries of the steps behind it.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from align.rollout.journal import Journal, write
from align.run.log import GREEDY, METRICS, RunLog, check_lines

STEPS, DONE, EVERY = 20_000, 19_000, 100


def make(folder: Path, size: float) -> None:
    """A run's folder: 60 metrics a step, 100 answers an evaluation, `size` GB of samples, 1,000 journal entries."""
    text = "x" * int(size * 1e9 / STEPS / 4 - 60)
    with (folder / METRICS).open("w") as metrics, (folder / GREEDY).open("w") as greedy:
        for step in range(STEPS + 1):
            if step:
                row = {"step": step, "loss": 0.1, **{f"metric/number_{i}": step / (i + 7) for i in range(60)}}
                metrics.write(json.dumps(row) + "\n")
            if step % EVERY == 0:
                answer = {"step": step, "prompt": "p" * 100, "response": "r" * 800, "reward": 0.5}
                greedy.writelines(json.dumps(answer) + "\n" for _ in range(100))
                metrics.write(json.dumps({"step": step, "eval/reward": 0.5}) + "\n")
    with (folder / "samples.jsonl").open("w") as samples:
        for step in range(1, STEPS + 1):
            line = json.dumps({"version": 1, "step": step, "text": text}) + "\n"
            samples.writelines([line] * 4)
    for step in range(DONE + 1, STEPS + 1):
        key = {"lineage": "l", "prompts": "p"}
        write(folder / f"rollouts/step_{step}/0-0-0.sampled", key, [{"ids": list(range(500))}] * 16)


def read() -> int:
    """Bytes that this process has read."""
    return int(Path("/proc/self/io").read_text().split()[1])


def tell(what: str, step) -> None:
    """Print what a part of the resume reads."""
    before, start = read(), time.perf_counter()
    step()
    print(f"{what:34} {(read() - before) / 1e6:10.2f} MB {time.perf_counter() - start:8.2f} s", flush=True)


def main(size: float) -> None:
    """Measure."""
    main_process = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, log=lambda *_, **__: None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, size)
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{'all files':34} {total / 1e6:10.2f} MB")
        tell("damage of metrics and greedy", lambda: [check_lines(folder / name, DONE) for name in (METRICS, GREEDY)])
        tell("journal: rollouts on disk", lambda: Journal(folder / "rollouts", []).kept(DONE))
        made = []
        tell("the log", lambda: made.append(RunLog(folder, main_process, DONE)))
        tell("the first evaluation", lambda: made[0].evaluations())
        tell("the sentinel's steps", lambda: made[0].steps())
        tell("at the end: greedy answers", lambda: made[0].greedy_samples())


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else 2.0)
