"""Memory and seconds of one rank for a source of many rows: reading, the split, a step's prompts.

    PYTHONPATH=. python tests/bench/data.py [ROWS ...]

Each number of rows is read in a process of its own. Seconds are those of the processor.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def write(path: Path, rows: int) -> None:
    """Sums with their answers, as lines of JSON."""
    draw = random.Random(0)
    with path.open("w") as file:
        for i in range(rows):
            a, b = draw.randrange(1000), draw.randrange(1000)
            row = {"prompt": f"{i}: what is {a} + {b}, in digits?", "answer": str(a + b), "level": draw.random()}
            file.write(json.dumps(row) + "\n")


def memory() -> float:
    """MiB of this process that no file is behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def measure(path: str) -> dict[str, float]:
    """What one rank needs for the rows of a file."""
    from support import tiny_model

    from align.config.data_keys import Data
    from align.data.read import load_prompts

    tokenizer = tiny_model.tokenizer()
    tokenizer("warm", verbose=False)
    before, start = memory(), time.process_time()
    prompts = load_prompts(Data(prompts=path, holdout=64), tokenizer, 0)
    read, now = time.process_time() - start, time.process_time()
    prompts.step(0, 1024, 0)  # which makes the order of the epoch
    first, now = time.process_time() - now, time.process_time()
    for step in range(1, 11):
        prompts.step(step, 1024, 0)
    later = (time.process_time() - now) / 10
    return {"rows": len(prompts.train), "MiB": memory() - before, "read": read, "step 0": first, "step": later}


def main(counts: list[int]) -> None:
    """Print a line for each number of rows."""
    print(f"{'rows':>9} {'MiB':>8} {'read s':>8} {'first step s':>13} {'step of 1,024 prompts s':>24}", flush=True)
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            write(path, count)
            done = subprocess.run([sys.executable, __file__, "--one", str(path)], capture_output=True, check=True)
        found = json.loads(done.stdout)
        numbers = f"{found['MiB']:8.1f} {found['read']:8.2f} {found['step 0']:13.3f} {found['step']:24.4f}"
        print(f"{found['rows'] + 64:9} {numbers}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main([int(word) for word in sys.argv[1:]] or [200, 10_000, 1_000_000])
