"""Part 6: five steps of a tiny model, the same killed after its second checkpoint and resumed, and a deadline on a call
that does not come back. On a CPU a rehearsal."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import device, main, say

ROOT = Path(__file__).resolve().parents[2]

STUCK = """
from align.system.deadline import deadline
import hashlib, torch
if torch.cuda.is_available():
    torch.zeros(1, device="cuda")
with deadline("kernel", 2):
    if torch.cuda.is_available():
        torch.cuda._sleep(10**15)
        torch.cuda.synchronize()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    """Training in one process."""
    return [sys.executable, str(ROOT / "recipes/train.py"), str(recipe), f"run.out={out}", *more]


def steps(out: Path) -> list[dict]:
    """What each step measured, apart from time and memory."""
    if not (out / "metrics.jsonl").exists():
        return []
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    apart = ("seconds/", "memory/")
    return [{name: x for name, x in row.items() if not name.startswith(apart)} for row in rows if "loss" in row]


def killed(words: list[str], out: Path) -> int:
    """Start a run and kill it, with all it started, once it has a checkpoint of its second step; its steps so far."""
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True)
    while process.poll() is None and not (out / "checkpoints/step_2").is_dir():
        time.sleep(0.05)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return len(steps(out))


def part() -> None:
    from support import tiny_model, tiny_task

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tiny_model.save_model(folder / "model")
        recipe = folder / "recipe.yaml"
        recipe.write_text(tiny_task.RECIPE.format(folder=folder / "model", adapter=", adapter: {rank: 4}", out="x"))
        words = ["sampling.engine=transformers", "data.holdout=0", "run.steps=5", "run.save_every=1"]
        words += ["model.dtype=float32", "optim.micro_batch_tokens=1024"]
        start = time.monotonic()
        subprocess.run(command(recipe, folder / "whole", *words), cwd=ROOT, check=True)
        whole = steps(folder / "whole")
        rewards = [round(row["reward/mean"], 3) for row in whole]
        seconds = round(time.monotonic() - start, 1)
        say(what="five steps", device=device(), steps=len(whole), rewards=rewards, seconds=seconds)
        done = killed(command(recipe, folder / "again", *words), folder / "again")
        subprocess.run(command(recipe, folder / "again", *words, "--resume"), cwd=ROOT, check=True)
        gap = max(abs(a["loss"] - b["loss"]) for a, b in zip(whole, steps(folder / "again"), strict=True))
        say(what="killed and resumed", device=device(), steps_before=done, largest_gap_of_losses=gap)
    start = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", STUCK], cwd=ROOT, capture_output=True, text=True, timeout=45)
    told = "kernel: not done after 2 s" in ended.stderr
    seconds = round(time.monotonic() - start, 1)
    say(what="deadline", device=device(), exit_code=ended.returncode, told=told, seconds=seconds)


if __name__ == "__main__":
    main(part)
