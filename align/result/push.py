"""From a result to the hub: only past the recipe's gate, and only what a fresh process could reload and verify."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError
from pydantic import TypeAdapter

from align.config.hub_name import base_problem
from align.config.recipe import Gate
from align.model.load import UNREADABLE
from align.result import hub, record
from align.result.card import RunSummary, card
from align.result.record import RecordError

SUMMARY = "summary.json"  # of a run's folder: what its card says

WHOLE = TypeAdapter(RunSummary)


class NotPushed(ValueError):
    """A result that stays where it is; the message says why and how to push it later."""


class SummaryError(ValueError):
    """The facts of a run cannot be read, or are not those of its result."""


class GateShut(NotPushed):
    """The held-out measure is below what the recipe asks for."""


def reached(gate: Gate, measured: Mapping[str, float]) -> dict:
    """The gate's keys and the `value` of its measure, NaN where it was not measured."""
    return {**gate.model_dump(), "value": measured.get(f"eval/{gate.measure}", math.nan)}


def store_summary(run: Path, summary: RunSummary) -> None:
    """Keep what a card needs, so that the result can be pushed later."""
    (run / SUMMARY).write_text(json.dumps(asdict(summary), indent=1) + "\n", encoding="utf-8")


def read_summary(run: Path) -> RunSummary:
    """What the card of a run says. Raises `SummaryError` where it cannot be read or is not of the result beside it."""
    try:
        summary = RunSummary(**json.loads((run / SUMMARY).read_text(encoding="utf-8")))
        WHOLE.validate_python(vars(summary))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        what = f"{run / SUMMARY} cannot be read: {' '.join(str(error).split())}"
        raise SummaryError(f"{what}; name the folder of a finished run, or resume it") from error
    if summary.gate and not all(isinstance(summary.gate.get(name), int | float) for name in ("value", "at_least")):
        raise SummaryError(f"{run / SUMMARY}: its gate has no numbers; end the run with --resume, which writes it anew")
    folder = result_of(run, summary)
    if summary.record and (folder / record.NAME).is_file() and summary.record != record.fingerprint(folder):
        what = f"the figures in {run / SUMMARY} are not of this result: its {record.NAME} is another one"
        raise SummaryError(f"{what}; end the run with --resume, which writes both anew")
    return summary


def result_of(run: Path, summary: RunSummary) -> Path:
    """The folder of a run's result."""
    return run / ("adapter" if summary.adapter else "model")


def check_gate(summary: RunSummary, folder: Path) -> None:
    """Raise `NotPushed` where the recipe's gate is shut, or where nobody knows of which result its measure is."""
    gate = summary.gate
    if gate and not gate["value"] >= gate["at_least"]:  # NaN is not
        low = f"eval/{gate['measure']} is {gate['value']:.3g}, and hub.gate asks for at least {gate['at_least']:g}"
        raise GateShut(f"not pushed: {low}; the result is in {folder}")
    if gate and summary.record is None:
        what = f"{SUMMARY} is of an older version and does not say of which result the gate's measure is"
        raise NotPushed(f"not pushed: {what}; end the run with --resume, which writes it anew")


def push_run(run: Path, repo: str, *, private: bool) -> str:
    """Verify the result of a run's folder, upload it with its card; the URL of its page. Raises `NotPushed`.

    What is verified is the very folder that is uploaded: the files of the record, and no others.
    """
    try:
        summary = read_summary(run)
    except SummaryError as error:
        raise NotPushed(f"not pushed: {error}") from error
    folder = result_of(run, summary)
    check_gate(summary, folder)
    if problem := base_problem(summary.base_model) if summary.adapter else None:
        raise NotPushed(f"not pushed: {problem}; the result is in {folder}")
    with tempfile.TemporaryDirectory() as work:
        try:
            hub.stage(folder, Path(work), summary.base_model)
        except (RecordError, *UNREADABLE) as error:
            raise NotPushed(f"not pushed: record: {error}; the result is in {folder}") from error
        checks = verified(Path(work))
        if failed := [f"{check['name']}: {check['found']}" for check in checks if not check["passed"]]:
            what = failed[0].replace(work, str(folder))
            raise NotPushed(f"not pushed: {what}; the result is in {folder}")
        return _upload(run, folder, Path(work), repo, replace(summary, verification=checks), private)


def _upload(run: Path, folder: Path, staged: Path, repo: str, summary: RunSummary, private: bool) -> str:
    """Upload what was staged, with its card; the URL of its page. Raises `NotPushed`."""
    try:
        url = hub.push(staged, repo, card(summary, repo), private=private)
        (folder / "README.md").write_text(card(summary, repo), encoding="utf-8")
        return url
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
