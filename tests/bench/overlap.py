"""What overlap saves: a server on one core, the trainer on another, steps with `sampling.staleness` 0 and 1 in turn.

    python tests/bench/overlap.py [--steps 8] [--rounds 2] [--json FILE]

`recipes/grpo_chain_sum.yaml` with a learning rate next to nothing, so that both ways sample the same tokens; that they
did is part of the table. A wall is the time between two lines of metrics.jsonl; the first step, which has nothing
sampled ahead, is left out, and so is the last, which samples nothing ahead.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.zygote import free_port

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/grpo_chain_sum.yaml"
KEYS = ["optim.lr=1.0e-9", "optim.schedule=constant", "sampling.old_logprob=sampler", "sampling.engine=server"]
KEYS += ["sampling.sync=merged", "data.holdout=0", "run.save_every=1000000"]
READY_S = 600


def started(words: list[str], core: int, log: Path, **environment: str) -> subprocess.Popen:
    """A process of one thread on one core."""
    known = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    with log.open("a") as file:
        return subprocess.Popen(["taskset", "-c", str(core), *words], cwd=ROOT, env=known, stdout=file, stderr=file)


@contextmanager
def server(keys: list[str], port: int, core: int, log: Path) -> Iterator[None]:
    """A server of launch/serve.sh, ready."""
    process = started(["bash", "launch/serve.sh", str(RECIPE), *keys], core, log, PORT=str(port))
    try:
        until = time.monotonic() + READY_S
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(log.read_text()[-4000:])
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait()


def walls(keys: list[str], core: int, out: Path) -> list[float]:
    """Seconds between the steps of a run."""
    log, lines, seen = out.with_suffix(".log"), out / "metrics.jsonl", []
    process = started([sys.executable, "recipes/train.py", str(RECIPE), *keys, f"run.out={out}"], core, log)
    while process.poll() is None:
        time.sleep(0.01)
        if lines.exists() and lines.read_text().count("response/lag") > len(seen):
            seen.append(time.perf_counter())
    if process.returncode:
        raise RuntimeError(log.read_text()[-4000:])
    return [after - before for before, after in zip(seen, seen[1:], strict=False)]


def tokens(out: Path) -> list[list[int]]:
    """All responses of a run."""
    return [json.loads(line)["response_ids"] for line in (out / "samples.jsonl").read_text().splitlines()]


def measured(staleness: int, keys: list[str], core: int, out: Path) -> dict:
    """Walls and phases of the steps between the first and the last."""
    found = walls([*keys, f"sampling.staleness={staleness}"], core, out)[:-1]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "response/lag" in line][1:-1]
    names = [
        "seconds/generate",
        "seconds/credit",
        "seconds/update",
        "seconds/sync",
        "overlap/seconds",
        "overlap/hidden",
    ]
    medians = {name: statistics.median(step[name] for step in steps) for name in names if name in steps[0]}
    return {"staleness": staleness, "walls": found, "wall": statistics.median(found), **medians}


def main(steps: int, rounds: int, file: Path | None) -> None:
    """Print the medians of each run and the ratio of the walls."""
    first, *_, last = sorted(os.sched_getaffinity(0))
    if first == last:
        sys.exit("needs two cores: one for the server, one for the trainer")
    with tempfile.TemporaryDirectory() as folder:
        port, work = free_port(), Path(folder)
        keys = [*KEYS, f"sampling.servers=[http://127.0.0.1:{port}]", f"run.steps={steps}"]
        found, sampled = [], []
        with server(keys, port, last, work / "server.log"):
            for i in range(2 * rounds):
                out = work / f"run{i}"
                found.append(measured(i % 2, keys, first, out))
                sampled.append(tokens(out))
                print(json.dumps(found[-1]), flush=True)
    both = [statistics.median(wall for one in found if one["staleness"] == s for wall in one["walls"]) for s in (0, 1)]
    print(f"seconds a step: {both[0]:.2f} without overlap, {both[1]:.2f} with, ratio {both[1] / both[0]:.2f}")
    print(f"the same tokens in all runs: {all(one == sampled[0] for one in sampled)}")
    if file:
        file.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    main(arguments.steps, arguments.rounds, arguments.json)
