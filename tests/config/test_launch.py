"""What a launch file says."""

from types import SimpleNamespace

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


@pytest.mark.parametrize("name", ["sp_size", "cp_size", "tp_size"])
def test_a_launch_file_divides_no_rows(tmp_path, name):
    path = tmp_path / "launch.yaml"
    path.write_text(f"{GOOD}parallelism_config: {{parallelism_config_{name}: 2}}\n")
    with pytest.raises(ConfigError, match=rf"4: parallelism_config.parallelism_config_{name}: is 2; .*leave it out"):
        launch.of_file(path)
    path.write_text(f"{GOOD}parallelism_config: {{parallelism_config_{name}: 1}}\n")
    assert launch.of_file(path).problems == []


@pytest.mark.parametrize(
    "parallel, engine, told",
    [
        ({"sp_size": 2}, {}, "parallelism_config.sp_size: is 2"),
        ({"tp_size": 2}, {}, "parallelism_config.tp_size: is 2"),
        ({}, {"sequence_parallel_size": 4}, "deepspeed_config.sequence_parallel_size: is 4"),
        ({}, {"tensor_parallel": {"autotp_size": 2}}, "deepspeed_config.tensor_parallel.autotp_size: is 2"),
        ({}, {"compile": {"passes": ["z1", "autosp"]}}, "deepspeed_config.compile.passes: is"),
    ],
)
def test_an_accelerator_divides_no_rows(parallel, engine, told):
    """However it came by its settings: the command line, the environment, a DeepSpeed config of its own."""
    plugin = SimpleNamespace(zero_stage=2, deepspeed_config=engine)
    sizes = SimpleNamespace(**{"sp_size": 1, "cp_size": 1, "tp_size": 1, **parallel}) if parallel else None
    accelerator = SimpleNamespace(
        state=SimpleNamespace(deepspeed_plugin=plugin),
        num_processes=2,
        mixed_precision="no",
        gradient_accumulation_steps=1,
        parallelism_config=sizes,
    )
    [problem] = launch.of_accelerator(accelerator).problems
    assert problem.startswith(f"launch: {told}") and "packed responses see each other; leave it out" in problem
    plugin.deepspeed_config, accelerator.parallelism_config = {}, None
    assert launch.of_accelerator(accelerator).problems == []
