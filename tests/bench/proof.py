"""What the proof of the sync sees in bfloat16: faults, and after how many steps; and whether healthy runs ever alarm.

    python tests/bench/proof.py [merged] [adapter] [full] [zero3] [--steps 60] [--at 10] [--lr R] [--seed 1] --json FILE

Real vLLM and DeepSpeed on CPU, a tiny random Llama that learns to answer in digits at a small rate. Each way trains the
steps without a fault; after each number of them in `--at`, and at the end, each fault is planted once and lasts for up
to five steps. With ZeRO-3 nothing is planted. `moved` is how far the probe's tokens were from the start, in nats rms.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

LORA, MERGED = ", adapter: {rank: 4, alpha: 8}", "sampling.sync=merged"
PARTS = ["no o_proj", "no v_proj", "no down_proj", "old", "old to another bit"]
WAYS = {  # {way: (launch file, adapter, learning rate, faults, keys)}
    "merged": ("cpu", LORA, 4e-3, ["scale 1.1", "scale 0.9", *PARTS], [MERGED]),
    "adapter": ("cpu", LORA, 4e-3, ["scale 1.1", "scale 0.9", *PARTS], ["sampling.sync=adapter"]),
    "full": ("cpu", "", 4e-4, PARTS, []),
    "zero3": ("cpu_zero3", LORA, 4e-3, [], [MERGED]),
}


def measure(way: str, folder: Path, wanted: argparse.Namespace) -> dict:
    """What `programs/proof.py` found in one way of training."""
    from support import tiny_model, tiny_task

    machine, adapter, lr, planted, keys = WAYS[way]
    lr, steps = wanted.lr or lr, wanted.steps
    recipe = tiny_task.RECIPE.format(folder=tiny_model.save_model(folder / "tiny"), adapter=adapter, out=folder / "run")
    (folder / "recipe.yaml").write_text(recipe.replace("lr: 0.01", f"lr: {lr}"))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / f"launch/{machine}.yaml")]
    moments = ",".join([*([wanted.at] if planted else []), str(steps)])
    program = [str(ROOT / "tests/integration/programs/proof.py"), str(folder / "recipe.yaml"), str(folder / "out.json")]
    arguments = [*launch, *program, moments, ",".join(planted), "model.dtype=bfloat16"]
    arguments += [*keys, f"run.seed={wanted.seed}"]
    path = f"{ROOT}:{ROOT / 'tests'}"
    subprocess.run(arguments, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
    return json.loads((folder / "out.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="*", choices=[*WAYS, []])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--at", default="10")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    wanted, out = parser.parse_args(), {}
    for way in wanted.ways or WAYS:
        with tempfile.TemporaryDirectory() as folder:
            out[way] = measure(way, Path(folder), wanted)
        alarms, found = out[way]["alarms"], out[way]["found"]
        print(f"{way}: {out[way]['tokens']} tokens, {len(alarms)} alarms in {wanted.steps} healthy steps {alarms}")
        for one in found:
            print(f"  {one['fault']:12} from step {one['at']}, moved {one['moved']:.2f}: {one['steps']} {one['kind']}")
    if wanted.json:
        wanted.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
