"""What a launch file says."""

import pytest
from support.paths import ROOT

from align.config import launch
from align.config.launch import Launch


@pytest.mark.parametrize(
    "name, expected", [("cpu", (1, 0)), ("cpu_zero2", (2, 2)), ("cpu_zero3", (2, 3)), ("zero3", (8, 3))]
)
def test_launch_files(name, expected):
    found = launch.of_file(ROOT / "launch" / f"{name}.yaml")
    assert (found.processes, found.zero_stage) == expected and found.problems == []


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_zero_divides(stage):
    shards = Launch(processes=4, zero_stage=stage).shards
    assert shards["optimiser"] == (4 if stage >= 1 else 1)
    assert shards["gradients"] == (4 if stage >= 2 else 1)
    assert shards["weights"] == (4 if stage >= 3 else 1)
