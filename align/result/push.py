"""From a result to the hub: only past the recipe's gate, and only what a fresh process could reload and verify."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

from align.config.hub_name import base_problem
from align.config.recipe import Gate
from align.result import hub
from align.result.card import RunSummary

SUMMARY = "summary.json"  # of a run's folder: what its card says


class NotPushed(ValueError):
    """A result that stays where it is; the message says why and how to push it later."""


class GateShut(NotPushed):
    """The held-out measure is below what the recipe asks for."""


def reached(gate: Gate, measured: Mapping[str, float]) -> dict:
    """The gate's keys and the `value` of its measure, NaN where it was not measured."""
    return {**gate.model_dump(), "value": measured.get(f"eval/{gate.measure}", math.nan)}


def store_summary(run: Path, summary: RunSummary) -> None:
    """Keep what a card needs, so that the result can be pushed later."""
    (run / SUMMARY).write_text(json.dumps(asdict(summary), indent=1) + "\n", encoding="utf-8")


def push_run(run: Path, repo: str, *, private: bool) -> str:
    """Verify the result of a run's folder, upload it with its card; the URL of its page. Raises `NotPushed`."""
    try:
        summary = RunSummary(**json.loads((run / SUMMARY).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        what = f"{run / SUMMARY} cannot be read: {error}"
        raise NotPushed(f"not pushed: {what}; name the folder of a finished run, or resume it") from error
    folder = run / ("adapter" if summary.adapter else "model")
    if (gate := summary.gate) and not gate["value"] >= gate["at_least"]:  # NaN is not
        low = f"eval/{gate['measure']} is {gate['value']:.3g}, and hub.gate asks for at least {gate['at_least']:g}"
        raise GateShut(f"not pushed: {low}; the result is in {folder}")
    problem = base_problem(summary.base_model) if summary.adapter else None
    checks = [] if problem else verified(folder)
    failed = [f"{check['name']}: {check['found']}" for check in checks if not check["passed"]]
    if problem or failed:
        raise NotPushed(f"not pushed: {problem or failed[0]}; the result is in {folder}")
    try:
        return hub.push(folder, repo, replace(summary, verification=checks), private=private)
    except (HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OSError, ValueError) as error:
        later = f"python -m align push {run} {repo}" + ("" if private else " --public")
        raise NotPushed(f"not pushed: {error}\nthe result is in {folder}; push it later by: {later}") from error


def verified(folder: Path) -> list[dict]:
    """The checks of `python -m align verify` in a process of its own: what a stranger's would find. Under ZeRO-3 this
    one would partition every model that it loads."""
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    own = ("ACCELERATE_", "TORCHELASTIC_", "DEEPSPEED_")
    alone = {name: value for name, value in os.environ.items() if name not in launched and not name.startswith(own)}
    command = [sys.executable, "-m", "align", "verify", str(folder), "--json"]
    done = subprocess.run(command, env={**alone, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    try:
        return json.loads(done.stdout)["checks"]
    except ValueError:
        return [{"name": "verify", "passed": False, "found": f"it broke off: {done.stderr.strip()[-2000:]}"}]
