"""A generation or a sync that takes too long ends the whole run with a message: real engines, two ranks."""

import time

import pytest
from support import tiny_task
from support.launch import launch
from support.paths import PROGRAMS

pytestmark = pytest.mark.engine


# a hung sync has time for the healthy generation before it on a machine that is busy
@pytest.mark.parametrize("how, what, deadline", [("slow", "generation", 4), ("hung", "sync", 12)])
def test_nothing_hangs(how, what, deadline, folder, tmp_path):
    recipe = tiny_task.RECIPE.format(folder=folder, adapter=", adapter: {rank: 4, alpha: 8}", out=tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(recipe)
    script, start = PROGRAMS / "deadline.py", time.monotonic()
    arguments = how, tmp_path / "recipe.yaml", "data.holdout=0", f"sampling.deadline_s={deadline}"
    with pytest.raises(AssertionError, match=rf"{what}: not done after {deadline} s.*raise sampling\.deadline_s"):
        # where nothing is in the compiler's cache yet, compiling alone takes longer than that
        launch("cpu_zero3", script, *arguments, TORCHDYNAMO_DISABLE="1")
    assert time.monotonic() - start < 300  # without a deadline 600
