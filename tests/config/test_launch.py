"""What a launch file says."""

from types import SimpleNamespace

import pytest
from support.paths import ROOT

from align.config import launch
from align.config.recipe_file import ConfigError
from align.system.hardware import Hardware

CPU, GPU = Hardware("cpu", 16.0), Hardware("cuda", 40.0)

GOOD = "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {zero_stage: 0}\n"


@pytest.mark.parametrize(
    "name, expected", [("cpu", (1, 0)), ("cpu_zero2", (2, 2)), ("cpu_zero3", (2, 3)), ("zero3", (8, 3))]
)
def test_launch_files(name, expected):
    found = launch.of_file(ROOT / "launch" / f"{name}.yaml")
    assert (found.processes, found.zero_stage) == expected and found.problems == []


@pytest.mark.parametrize(
    "line, gib, here, kind, size, told",
    [
        ("use_cpu: false", None, CPU, "cuda", 80.0, "assumed; --gpu-gib says otherwise"),
        ("use_cpu: false", 24.0, CPU, "cuda", 24.0, "as --gpu-gib says"),
        ("use_cpu: false", None, GPU, "cuda", 40.0, ""),
        ("use_cpu: false", 141.0, GPU, "cuda", 141.0, "as --gpu-gib says"),
        ("", None, CPU, "cpu", 16.0, ""),
        ("", None, GPU, "cuda", 40.0, ""),
        ("use_cpu: true", None, GPU, "cuda", 40.0, ""),  # accelerate's launcher for DeepSpeed does not pass it on
        ("", 48.0, CPU, "cuda", 48.0, "as --gpu-gib says"),
    ],
)
def test_a_launch_file_says_whether_it_is_for_gpus(tmp_path, monkeypatch, line, gib, here, kind, size, told):
    monkeypatch.setattr(launch, "here", lambda: here)
    path = tmp_path / "launch.yaml"
    path.write_text(f"{GOOD}num_machines: 2\n{line}\n")
    found = launch.of_file(path, gib)
    assert (found.hardware.kind, found.hardware.gib, found.given, found.machines) == (kind, size, told, 2)


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_the_launch_files_of_gpus_are_for_gpus_everywhere(name):
    assert launch.of_file(ROOT / "launch" / f"{name}.yaml", 80.0).hardware.is_gpu


def test_the_recipe_decides_where_the_optimiser_s_states_are(tmp_path):
    path = tmp_path / "launch.yaml"
    path.write_text(GOOD.replace("zero_stage: 0", "zero_stage: 2, offload_optimizer_device: cpu"))
    (problem,) = launch.of_file(path).problems
    assert "offload_optimizer_device: is cpu, and the recipe's optim.offload_optimizer decides; write none" in problem


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
    plugin = SimpleNamespace(zero_stage=2, deepspeed_config=engine, offload_optimizer_device="none")
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
