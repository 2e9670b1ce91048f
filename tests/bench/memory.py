"""The estimate of a run's peak memory beside what the run took.

    python tests/bench/memory.py MACHINE RECIPE [key=value ...]

MACHINE is a file of launch/ without its ending. Trainer and engine are one process: on a CPU with one peak, on a GPU
with that of the phase that takes most, of which torch does not see CUDA's context. Prints one JSON object.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from align.check.report import checkup

ROOT = Path(__file__).parents[2]


def measured(machine: Path, recipe: Path, overrides: list[str]) -> float:
    """GiB: the peak of the main process of two steps without an evaluation."""
    with tempfile.TemporaryDirectory() as out:
        more = [*overrides, "run.steps=2", "data.holdout=0", f"run.out={out}/run"]
        command = ["accelerate", "launch", "--config_file", str(machine), "--main_process_port", "0"]
        subprocess.run([*command, str(ROOT / "recipes/train.py"), str(recipe), *more], check=True, stdout=sys.stderr)
        rows = [json.loads(line) for line in Path(out, "run/metrics.jsonl").read_text().splitlines()]
    return max(row["memory/peak_gib"] for row in rows)


def main(name: str, recipe: str, *overrides: str) -> None:
    machine = ROOT / "launch" / f"{name}.yaml"
    result = checkup(Path(recipe), [*overrides, "data.holdout=0"], machine)
    if not result["ok"]:
        raise SystemExit("\n".join(result["problems"]))
    phases, peak = result["facts"]["memory_gib"], measured(machine, Path(recipe), list(overrides))
    total = max(terms["total"] - terms.get("CUDA context", 0) for terms in phases.values())
    print(json.dumps({"phases": phases, "estimated_gib": total, "measured_gib": peak, "error": total / peak - 1}))


if __name__ == "__main__":
    main(*sys.argv[1:])
