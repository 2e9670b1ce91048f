"""Run the parts of the proof one after the other, each in a process of its own with a limit of its own.

    python tests/gpu/run.py OUT [PATIENCE]

Writes OUT/result.json and OUT/log.txt, and prints a table. A part that lacks a package or a GPU is skipped, and its
reason is written down; what a part measured before its limit or its error stays. PATIENCE multiplies the limits, for a
rehearsal on a busy machine. Imports nothing but Python's own library, so it always comes to its end.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WHEELS = Path(os.environ.get("GPU_WHEELS", HERE / "wheels"))  # packages to bring, see README.md
SKIPPED = 77  # the exit code of a part that cannot run here
WHOLE = 590.0  # seconds of all parts


@dataclass(frozen=True)
class Part:
    """One program of this folder."""

    name: str  # of its file
    what: str
    limit: float  # seconds
    needs: tuple[str, ...] = ()  # packages
    gpu: bool = False  # whether it has no rehearsal on a CPU


TRAINING = ("torch", "transformers", "accelerate", "peft", "deepspeed", "trl", "datasets", "pydantic")

PARTS = (
    Part("versions", "what is installed, and the GPU", 40, ("torch",)),
    Part("attention", "flex, parts, varlen and padded: errors, recompiles, ms", 90, ("torch", "transformers")),
    Part("training", "the shape of Qwen3-8B, LoRA, ZeRO-2: tokens/s, peak memory", 150, TRAINING, gpu=True),
    Part("zero3", "ZeRO-3: types, head gathers, one against several micro-batches", 60, TRAINING),
    Part("engine", "vLLM: threads, seeds, gap to the trainer, seconds of a sync", 120, (*TRAINING, "vllm"), gpu=True),
    Part("loop", "five steps, kill and resume, a deadline on a spinning kernel", 60, TRAINING),
)


def environment(site: Path | None) -> dict[str, str]:
    """What parts find their modules by."""
    paths = [str(ROOT), str(ROOT / "tests"), *([str(site)] if site else []), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


def install(site: Path, log) -> str | None:
    """Unpack the wheels that were brought into `site`; why that failed, None where it did not or there are none."""
    wheels = sorted(map(str, WHEELS.glob("*.whl")))
    if not wheels:
        return None
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile", "--target", str(site)]
    done = subprocess.run([*command, *wheels], stdout=log, stderr=log, timeout=120)
    return f"pip ended with {done.returncode}; see log.txt" if done.returncode else None


def missing(part: Part, site: Path | None, gpu: bool) -> str | None:
    """Why a part cannot run here, as far as that is seen without starting it."""
    lost = [name for name in part.needs if not ((site and (site / name).exists()) or importlib.util.find_spec(name))]
    if lost:
        return f"not installed: {', '.join(lost)}"
    return "no GPU" if part.gpu and not gpu else None


def run(part: Part, limit: float, folder: Path, site: Path | None, log) -> dict:
    """Run one part; its status, reason, seconds and all that it measured."""
    said = folder / f"{part.name}.jsonl"
    log.write(f"\n== {part.name}\n")
    log.flush()
    start, position = time.monotonic(), log.tell()
    variables = {**environment(site), "PART_OUT": str(said)}
    process = subprocess.Popen(
        [sys.executable, str(HERE / f"{part.name}.py")],
        **dict(cwd=folder, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True),
    )
    try:
        code = process.wait(limit)
        status = {0: "ran", SKIPPED: "skipped"}.get(code, "failed")
        reason = None if code == 0 else f"ended with {code}"
    except subprocess.TimeoutExpired:
        status, reason = "timed out", f"not done after {limit:.0f} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what it started
        process.wait()
    rows = [json.loads(line) for line in said.read_text().splitlines()] if said.exists() else []
    if status == "failed":
        with open(log.name) as text:
            text.seek(position)
            reason = f"{reason}: {text.read()[-800:].strip()}"
    reasons = [row.pop("skipped") for row in rows if "skipped" in row]
    if status == "skipped":
        reason = "; ".join(reasons)
    return {
        "status": status,
        "reason": reason,
        "seconds": round(time.monotonic() - start, 1),
        "rows": list(filter(None, rows)),
    }


def prove(out: Path, patience: float = 1.0, parts: tuple[Part, ...] = PARTS) -> dict:
    """Run all parts and return what `result.json` says, which is written after each."""
    out.mkdir(parents=True, exist_ok=True)
    end, gpu, found = time.monotonic() + WHOLE * patience, False, {"device": None, "parts": []}
    with tempfile.TemporaryDirectory() as temporary, open(out / "log.txt", "w") as log:
        folder, site = Path(temporary), None
        if list(WHEELS.glob("*.whl")):
            site = folder / "site"
            found["install"] = install(site, log) or "installed"
        for part in parts:
            limit = min(part.limit * patience, end - time.monotonic())
            reason = missing(part, site, gpu) or ("no time is left" if limit < 5 else None)
            if reason:
                done = {"status": "skipped", "reason": reason, "seconds": 0.0, "rows": []}
            else:
                done = run(part, limit, folder, site, log)
            if part.name == "versions":
                found["device"] = next((row["device"] for row in done["rows"] if "device" in row), None)
                gpu = found["device"] == "cuda"
            found["parts"].append({"name": part.name, "what": part.what, "limit": part.limit * patience, **done})
            (out / "result.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def table(found: dict) -> str:
    """One line a part, and below it one a row that it measured."""
    device = found["device"]
    lines = [f"device: {device}" + ("" if device == "cuda" else " (a rehearsal: no figure here is one of a GPU)")]
    for part in found["parts"]:
        lines.append(f"{part['name']:10} {part['status']:9} {part['seconds']:6.1f} s  {part['reason'] or part['what']}")
        lines += ["    " + "  ".join(f"{name}={value}" for name, value in row.items()) for row in part["rows"]]
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    print(table(prove(Path(sys.argv[1]).resolve(), *map(float, sys.argv[2:]))))
