"""What a launch file says."""

import pytest
from support.paths import ROOT

from align.config import launch
from align.config.launch import Launch
from align.config.recipe_file import ConfigError


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


GOOD = "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {zero_stage: 0}\n"
TYPOS = [
    ("num_processes", "num_proceses", "2: num_proceses: unknown key; did you mean 'num_processes'?"),
    ("zero_stage", "zero_stge", "3: deepspeed_config.zero_stge: unknown key; did you mean 'zero_stage'?"),
    ("processes: 2", "processes: true", "2: num_processes: must be a whole number of at least 1, but it is True"),
    ("processes: 2", "processes: 010", "2: num_processes: 010 is another number in YAML 1.1"),
    ("zero_stage: 0", "zero_stage: two", "3: deepspeed_config.zero_stage: must be a whole number"),
    ("num_processes: 2", "num_processes: 2\nuse_cpu: ture", "3: use_cpu: is 'ture'; write true or false"),
    ("num_processes: 2", "num_processes: 2\n1: 2", ": 1: unknown key"),
]


@pytest.mark.parametrize("old, new, told", TYPOS, ids=[case[1] for case in TYPOS])
def test_a_typo_is_refused_with_its_line(tmp_path, old, new, told):
    path = tmp_path / "launch.yaml"
    path.write_text(GOOD)
    assert launch.of_file(path).processes == 2
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        launch.of_file(path)
    assert any(told in problem for problem in caught.value.problems), caught.value.problems
