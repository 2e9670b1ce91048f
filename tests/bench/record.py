"""What the record of a step costs: bytes a token, and the time to write it and to read it back.

    python tests/bench/record.py --json FILE [--metrics runs/gfpo_chain_sum/metrics.jsonl]

Made-up rollouts of the quickstart's size (8 groups of 8, up to 24 tokens, ids and texts of a large vocabulary), or 8
pairs of up to 64 tokens, through the objective of each recipe; 2,000 rows of about 200 tokens through GFPO's, once.
Median of 7 repeats, one thread. With --metrics also what it took within a run: medians of its steps.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from support import recorded
from support.paths import ROOT

from align.config.experiment import load_experiment
from align.config.rules import REPLAY
from align.loop import PHASES
from align.result import samples
from align.run.samples import Record

REPEATS = 7
RECIPES = ("gfpo_chain_sum", "d3s_chain_sum", "composed_chain_sum", "ppo_reviews", "dpo_champ", "sparsepo_champ")


def step_of(recipe: str, **size: int):
    """(step, batches, outputs) of a recipe's objective."""
    objectives = load_experiment(ROOT / "recipes" / f"{recipe}.yaml", (), REPLAY).objectives
    pairs = any(o.preference for o in objectives)
    size = size or ({"pairs": 8, "longest": 64} if pairs else {"groups": 8, "longest": 24})
    make = recorded.collected_pairs if pairs else recorded.collected
    source = recorded.step(objectives, make(0, 0.1, vocabulary=49_152, **size), 0)
    return 1, [source], recorded.outputs(source, 0, 0)


def timed(call, repeats: int) -> float:
    """Median milliseconds of this process, whatever else the machine does."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return 1e3 * statistics.median(seconds[1:])


def measured(step, path: Path, repeats: int = REPEATS) -> dict[str, float]:
    def write() -> None:
        path.write_text("".join(f"{line}\n" for line in Record().lines(*step)))

    out = {"write_ms": timed(write, repeats), "read_ms": timed(lambda: samples.read(path), repeats)}
    rollouts = samples.read(path).values()
    tokens = sum(len(rollout.response_ids) for rollout in rollouts)
    return out | {"rows": len(rollouts), "tokens": tokens, "bytes_a_token": path.stat().st_size / tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--metrics", type=Path)
    parser.add_argument("--short", action="store_true", help="without the 2,000 rows")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "samples.jsonl"
        found = {recipe: measured(step_of(recipe), path) for recipe in RECIPES}
        if not wanted.short:
            found["gfpo, 2,000 rows"] = measured(step_of("gfpo_chain_sum", groups=250, longest=400), path, repeats=1)
    if wanted.metrics:
        rows = [row for row in map(json.loads, wanted.metrics.open()) if "loss" in row]
        step = statistics.median(sum(row.get(f"seconds/{phase}", 0.0) for phase in PHASES) for row in rows)
        record = statistics.median(row["seconds/record"] for row in rows)
        found["run"] = {"steps": len(rows), "step_s": step, "record_ms": 1e3 * record, "share": record / step}
    wanted.json.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
