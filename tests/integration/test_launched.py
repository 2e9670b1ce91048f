"""What `accelerate launch` shows at the end of a run that ends early: the reason, below its own traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

pytestmark = pytest.mark.engine

ACCELERATE = Path(sys.executable).with_name("accelerate")
FILE = ("--config_file", str(ROOT / "launch/cpu.yaml"), "--main_process_port", "0")
SCRIPT = str(ROOT / "recipes/train.py")


@pytest.mark.parametrize(
    "words, last",
    [
        ((*FILE, SCRIPT), "Missing argument 'RECIPE'"),
        ((*FILE, "-m", "align", "train", "absent.yaml"), "absent.yaml"),
        ((SCRIPT, "empty.yaml"), "empty.yaml"),  # without a config file
    ],
    ids=["no recipe", "module", "no config file"],
)
def test_the_reason_comes_last(tmp_path, words, last):
    (tmp_path / "empty.yaml").touch()
    done = subprocess.run(
        [str(ACCELERATE), "launch", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0 and last in done.stderr.splitlines()[-1], done.stderr
    if words[0] == SCRIPT:
        assert "one process, as with launch/cpu.yaml" in done.stdout
