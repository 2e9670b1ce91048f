"""Real trackers, offline, each in a process of its own; skipped where a tracker is not installed."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from support.paths import PYTHONPATH

RUN = """
import sys
from pathlib import Path
from accelerate import Accelerator
from align.run.log import RunLog
name, out = sys.argv[1], Path(sys.argv[2])
accelerator = Accelerator(cpu=True, log_with=[name])
log = RunLog(out, accelerator, 0)
log.describe({"optim": {"lr": 0.1}, "run": {"trackers": [name]}}, {})
log.evaluation(0, {"eval/reward": 0.25}, [])
for step in (1, 2):
    log.step(step, {"loss": 0.5 / step}, [])
(out / "xray.html").write_text("<!doctype html><title>the tokens</title>")
log.page(out / "xray.html", 2)
accelerator.end_training()
"""


def ran(name, folder, **variables) -> None:
    """A log of two steps and the page, given to a tracker that reaches nothing."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed (pip install {name})")
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": PYTHONPATH, "PATH": os.environ["PATH"], "HOME": str(folder)}
    command = [sys.executable, "-c", RUN, name, str(folder / "run")]
    done = subprocess.run(
        command, cwd=folder, env={**offline, **variables}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def pages_in(folder) -> list[str]:
    return [path.read_text() for path in folder.rglob("*.html") if path.parent.name != "run"]


def test_trackio_gets_the_metrics_and_the_page(tmp_path):
    ran("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    assert "<title>the tokens</title>" in "".join(pages_in(tmp_path / "trackio"))
    (database,) = (tmp_path / "trackio").glob("align*.db")
    assert all(name in database.read_bytes() for name in (b'"eval/reward"', b'"loss"', b'"trackio.html"'))


def test_wandb_gets_the_metrics_and_the_page(tmp_path):
    ran("wandb", tmp_path, WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    assert pages_in(tmp_path / "wandb") == ["<!doctype html><title>the tokens</title>"]
    (record,) = (tmp_path / "wandb").rglob("*.wandb")
    assert all(name in record.read_bytes() for name in (b"eval/reward", b"html-file"))
