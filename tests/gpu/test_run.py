"""The driver of the proof: every part has its status and its reason, whatever happens to it."""

import json
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
from support.paths import ROOT

HERE = ROOT / "tests/gpu"
PROGRAMS = {
    "versions": "say(device='cpu'); say(torch='2.11')",
    "measures": "say(ms=1.5)",
    "lacks": "import no_such_module",
    "declines": "raise Skip('no card')",
    "breaks": "say(ms=2.5); raise ValueError('wrong numbers')",
    "hangs": "say(ms=3.5); import time; time.sleep(60)",
    "dies": "import os; os.kill(os.getpid(), 9)",
}


@pytest.fixture
def driver(tmp_path):
    """The driver's names, its parts in a folder of the test."""
    found = runpy.run_path(str(HERE / "run.py"))
    for name, body in PROGRAMS.items():
        text = f"from report import Skip, main, say\ndef part():\n    {body}\nmain(part)\n"
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "report.py").write_text((HERE / "report.py").read_text())
    found["prove"].__globals__["HERE"] = tmp_path
    found["prove"].__globals__["WHEELS"] = tmp_path / "wheels"
    return SimpleNamespace(**found)


def test_each_part_has_its_status_and_keeps_what_it_measured(driver, tmp_path):
    limits = {"hangs": 5.0}
    parts = [driver.Part(name, name, limits.get(name, 50.0)) for name in PROGRAMS]
    parts += [driver.Part("needs", "a package", 50, ("no_such_package",)), driver.Part("on a card", "", 50, gpu=True)]
    found = driver.prove(tmp_path / "out", 1.0, tuple(parts))
    assert json.loads((tmp_path / "out/result.json").read_text()) == found and found["device"] == "cpu"
    got = {part["name"]: part for part in found["parts"]}
    assert {name: part["status"] for name, part in got.items()} == {
        "versions": "ran",
        "measures": "ran",
        "lacks": "skipped",
        "declines": "skipped",
        "breaks": "failed",
        "hangs": "timed out",
        "dies": "failed",
        "needs": "skipped",
        "on a card": "skipped",
    }
    assert got["lacks"]["reason"] == "cannot import: No module named 'no_such_module'"
    assert got["declines"]["reason"] == "no card" and got["needs"]["reason"] == "not installed: no_such_package"
    assert got["on a card"]["reason"] == "no GPU" and got["hangs"]["reason"] == "not done after 5 s"
    assert "ValueError: wrong numbers" in got["breaks"]["reason"] and got["dies"]["reason"].startswith("ended with -9")
    assert [got[name]["rows"] for name in ("measures", "breaks", "hangs")] == [[{"ms": n}] for n in (1.5, 2.5, 3.5)]
    shown = driver.table(found)
    assert "a rehearsal: no figure here is one of a GPU" in shown and all(name in shown for name in got)


def test_all_parts_end_in_ten_minutes_and_are_there(driver):
    assert sum(part.limit for part in driver.PARTS) <= 590 and driver.WHOLE < 600
    assert [part.name for part in driver.PARTS] == ["versions", "attention", "training", "zero3", "engine", "loop"]
    for part in driver.PARTS:
        compile((HERE / f"{part.name}.py").read_text(), part.name, "exec")


def test_the_first_part_says_what_is_installed(tmp_path):
    done = subprocess.run(
        [sys.executable, str(HERE / "versions.py")],
        **dict(env={"PART_OUT": str(tmp_path / "rows"), "PATH": ""}, capture_output=True, text=True),
    )
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "rows").read_text())
    assert row["device"] in ("cpu", "cuda") and row["torch"] and row["transformers"]
