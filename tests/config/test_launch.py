"""What a launch file says."""

import os
import subprocess
from types import SimpleNamespace

import pytest
from accelerate.commands.launch import launch_command_parser
from support.paths import ROOT

from align.config import launch
from align.config.recipe_file import ConfigError
from align.system.hardware import Hardware

CPU, GPU = Hardware("cpu", 16.0), Hardware("cuda", 40.0)

GOOD = "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {zero_stage: 0}\n"


@pytest.mark.parametrize(
    "name, expected",
    [
        *[("cpu", (1, 0, 1)), ("cpu_zero2", (2, 2, 2)), ("cpu_zero3", (2, 3, 2)), ("zero2", (8, 2, 8))],
        *[("zero3", (8, 3, 8)), ("cpu_nodes_zero2", (2, 2, 1)), ("cpu_nodes_zero3", (2, 3, 1))],
        *[("nodes_zero2", (16, 2, 8)), ("nodes_zero3", (16, 3, 8))],
    ],
)
def test_launch_files(name, expected):
    found = launch.of_file(ROOT / "launch" / f"{name}.yaml")
    assert (found.processes, found.zero_stage, found.each) == expected and found.problems == []


@pytest.mark.parametrize("launcher", [None, "pdsh", "nossh"])
def test_nodes_are_started_without_the_program_of_deepspeed(tmp_path, launcher):
    path, key = tmp_path / "launch.yaml", f", deepspeed_multinode_launcher: {launcher}" if launcher else ""
    path.write_text(f"{GOOD.replace('zero_stage: 0', f'zero_stage: 2{key}')}num_machines: 2\n")
    (problem,) = launch.of_file(path).problems
    assert f"deepspeed_multinode_launcher: is {launcher or 'pdsh'}, so accelerate would start" in problem
    path.write_text(path.read_text().replace("num_machines: 2", "num_machines: 1"))
    assert launch.of_file(path).problems == []


def test_each_machine_has_as_many_processes(tmp_path):
    path = tmp_path / "launch.yaml"
    standard = "zero_stage: 2, deepspeed_multinode_launcher: standard"
    path.write_text(f"{GOOD.replace('zero_stage: 0', standard)}num_machines: 3\n")
    (problem,) = launch.of_file(path).problems
    assert "num_processes: is 2, and 3 machines get as many each; write a multiple" in problem


SRUN = """\
#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done
"""


@pytest.mark.parametrize("restarts, last", [("0", "run.seed=1"), ("1", "--resume")])
def test_slurm_starts_one_launcher_a_node(tmp_path, restarts, last):
    """With stand-ins for SLURM's programs."""
    programs = {"srun": SRUN, "scontrol": "#!/bin/sh\nprintf 'n7\\nn8\\n'\n", "accelerate": '#!/bin/sh\necho "$@"\n'}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "n[7-8]", "SLURM_JOB_NUM_NODES": "2"}
    job |= {"SLURM_GPUS_ON_NODE": "4", "SLURM_RESTART_COUNT": restarts, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "launch/slurm.sh"), "a recipe.yaml", "run.seed=1"]
    told = subprocess.run(command, env={**os.environ, **job}, capture_output=True, text=True, check=True).stdout
    lines = told.splitlines()
    assert len(lines) == 2 and all(line.endswith(last) for line in lines)
    for node, line in enumerate(lines):
        arguments = launch_command_parser().parse_args(line.replace("a recipe", "a_recipe").split()[1:])
        found = (arguments.machine_rank, arguments.num_machines, arguments.num_processes, arguments.main_process_ip)
        assert found == (node, 2, 8, "n7") and arguments.deepspeed_multinode_launcher == "standard"


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
