"""How a run is launched, as far as its recipe depends on it: by a launch file, or by an accelerator made from one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import ParallelismConfig

from align.config.problems import nearest, shortened
from align.config.recipe_file import ConfigError, RecipeFile, read
from align.system.hardware import Hardware, here
from align.system.node import machines

ASSUMED_GIB = 80.0  # of a GPU, where this machine has none to look at

ONE_A_NODE = "standard"  # of accelerate's ways to start several machines: torchrun on each

ENGINE_ARGUMENTS = "DeepSpeed Arguments"  # the group of `accelerate launch --help` with the keys of deepspeed_config

PARALLEL = ("tp_size", "cp_size", "sp_size")  # what divides layers or sequences, of accelerate's parallelism config

# DeepSpeed Ulysses attends through a function of its own, which replaces every mask by the plain causal one
WHOLE_ROWS = (
    "each process computes whole rows with whole layers, and sequence parallelism would let packed responses see each "
    "other; leave it out"
)


@dataclass(frozen=True)
class Launch:
    """Processes, ZeRO and hardware of a run; by default one process without ZeRO, here, as in launch/cpu.yaml."""

    name: str = "launch"
    processes: int = 1
    zero_stage: int = 0
    mixed_precision: str = "no"
    accumulation: int = 1  # micro-batches that the launch file wants for a step
    offload_optimizer: str = "none"  # device that the launch file wants the optimiser's states on
    hardware: Hardware = field(default_factory=here)
    divided: Mapping[str, object] = field(default_factory=dict)  # {setting that divides rows or layers: its value}
    machines: int = 1
    given: str = ""  # where the hardware is known from, if it is not that of this machine
    launcher: str = ONE_A_NODE  # what accelerate starts several machines by

    @property
    def each(self) -> int:
        """Processes of a machine."""
        return max(1, self.processes // self.machines)

    @property
    def problems(self) -> list[str]:
        """Settings that no recipe can run with, one line each."""
        out = []
        if self.mixed_precision != "no":
            what = f"is {self.mixed_precision}, and the recipe's model.dtype decides; write 'no'"
            out.append(f"{self.name}: mixed_precision: {what}")
        if self.accumulation != 1:
            what = f"is {self.accumulation}, and optim.micro_batch_tokens makes the micro-batches; write 1"
            out.append(f"{self.name}: deepspeed_config.gradient_accumulation_steps: {what}")
        if self.offload_optimizer != "none":
            what = f"is {self.offload_optimizer}, and the recipe's optim.offload_optimizer decides; write none"
            out.append(f"{self.name}: deepspeed_config.offload_optimizer_device: {what}")
        if self.machines > 1 and self.launcher != ONE_A_NODE:
            what = f"is {self.launcher}, so accelerate would start the program deepspeed, and that mostly pdsh"
            key = "deepspeed_config.deepspeed_multinode_launcher"
            out.append(f"{self.name}: {key}: {what}; write {ONE_A_NODE}, and run accelerate launch on every node")
        if self.processes % self.machines:
            what = f"is {self.processes}, and {self.machines} machines get as many each; write a multiple"
            out.append(f"{self.name}: num_processes: {what}")
        divided = self.divided.items()
        return out + [f"{self.name}: {setting}: is {shortened(value)}; {WHOLE_ROWS}" for setting, value in divided]


def engine_stage(zero_stage: int, dtype: str) -> int:
    """The ZeRO stage that the engine has: DeepSpeed sums gradients of bfloat16 in float32 under ZeRO alone, so without
    it the engine is ZeRO-2's, which in one process is the same thing."""
    return zero_stage or (2 if dtype == "bfloat16" else 0)


def of_file(path: Path, gpu_gib: float | None = None) -> Launch:
    """Read a file of launch/. Raises `ConfigError` where it starts no DeepSpeed, and `FileNotFoundError`.

    A file that has `use_cpu: false` is for GPUs, also where this machine has none; accelerate takes it for the default.
    `gpu_gib` is their memory.
    """
    file = read(path)
    given, engine = file.data, file.data.get("deepspeed_config")
    if given.get("distributed_type") != "DEEPSPEED" or not isinstance(engine, Mapping):
        what = "must be DEEPSPEED, with its deepspeed_config; begin with launch/cpu.yaml"
        raise ConfigError([file.problem(("distributed_type",), what)])
    problems = _unknown(file)
    numbers = {
        ("num_processes",): (given.get("num_processes", 1), 1),
        ("deepspeed_config", "zero_stage"): (engine.get("zero_stage", 2), 0),  # accelerate's own default
        ("deepspeed_config", "gradient_accumulation_steps"): (engine.get("gradient_accumulation_steps", 1), 1),
    }
    problems += [
        file.problem(key, f"must be a whole number of at least {least}, but it is {shortened(value)}")
        for key, (value, least) in numbers.items()
        if type(value) is not int or value < least
    ]
    if not problems and numbers["deepspeed_config", "zero_stage"][0] > 3:
        problems.append(file.problem(("deepspeed_config", "zero_stage"), "must be 0, 1, 2 or 3"))
    if "deepspeed_config_file" in engine:
        what = "is not read here; write its keys into this file"
        problems.append(file.problem(("deepspeed_config", "deepspeed_config_file"), what))
    if isinstance(parallel := given.get("parallelism_config"), Mapping):
        wrong = [name for name in PARALLEL if parallel.get(f"parallelism_config_{name}", 1) != 1]
        places = [("parallelism_config", f"parallelism_config_{name}") for name in wrong]
        problems += [file.problem(key, f"is {shortened(parallel[key[1]])}; {WHOLE_ROWS}") for key in places]
    if problems:
        raise ConfigError(problems)
    processes, stage, accumulation = (value for value, _ in numbers.values())
    hardware, known = for_gpus(given.get("use_cpu"), gpu_gib)
    precision = str(given.get("mixed_precision", "no"))
    return Launch(
        *(str(path), processes, stage, precision, accumulation),
        offload_optimizer=str(engine.get("offload_optimizer_device") or "none"),
        hardware=hardware,
        machines=given.get("num_machines") or 1,
        given=known,
        launcher=str(engine.get("deepspeed_multinode_launcher") or "pdsh"),  # accelerate's own default
    )


def for_gpus(use_cpu: bool | None, gpu_gib: float | None) -> tuple[Hardware, str]:
    """(what each process computes on, where that is known from, if it is not this machine)."""
    mine = here()
    if use_cpu is not False and gpu_gib is None:
        return mine, ""
    if gpu_gib is not None:
        return Hardware("cuda", gpu_gib), "as --gpu-gib says"
    return (mine, "") if mine.is_gpu else (Hardware("cuda", ASSUMED_GIB), "assumed; --gpu-gib says otherwise")


def _unknown(file: RecipeFile) -> list[str]:
    """Find keys that `accelerate launch` would refuse, or not look at."""
    engine = next(group for group in launch_command_parser()._action_groups if group.title == ENGINE_ARGUMENTS)
    known = {
        (): [field.name for field in fields(ClusterConfig)],
        ("deepspeed_config",): [action.dest for action in engine._group_actions],
    }
    sections = {(): file.data, ("deepspeed_config",): file.data["deepspeed_config"]}
    problems = [
        file.problem((*key, name), f"unknown key; {nearest(name, known[key])}")
        for key, section in sections.items()
        for name in section
        if name not in known[key]
    ]
    if file.data.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE":
        problems.append(file.problem(("compute_environment",), "must be LOCAL_MACHINE"))
    least = {"num_machines": 1, "machine_rank": 0, "main_process_port": 0}
    problems += [
        file.problem((name,), f"must be a whole number of at least {at_least}, but it is {shortened(value)}")
        for name, at_least in least.items()
        if (value := file.data.get(name)) is not None and (type(value) is not int or value < at_least)
    ]
    flags = [field.name for field in fields(ClusterConfig) if field.type is bool and field.name in file.data]
    wrong = [name for name in flags if not isinstance(file.data[name], bool)]
    return problems + [file.problem((name,), f"is {shortened(file.data[name])}; write true or false") for name in wrong]


def of_accelerator(accelerator: Accelerator) -> Launch:
    """Read the settings that accelerate took from the launch file and the command line."""
    plugin = accelerator.state.deepspeed_plugin
    return Launch(
        processes=accelerator.num_processes,
        zero_stage=plugin.zero_stage,
        mixed_precision=accelerator.mixed_precision,
        accumulation=accelerator.gradient_accumulation_steps,
        divided=_divided(accelerator.parallelism_config, plugin.deepspeed_config),
        offload_optimizer=plugin.offload_optimizer_device,
        machines=machines(),
    )


def _divided(parallel: ParallelismConfig | None, engine: Mapping[str, Any]) -> dict[str, object]:
    """{setting: value} of what divides rows or layers over processes."""
    found = {f"parallelism_config.{name}": getattr(parallel, name, 1) for name in PARALLEL}
    found["deepspeed_config.sequence_parallel_size"] = engine.get("sequence_parallel_size", 1)
    found["deepspeed_config.tensor_parallel.autotp_size"] = engine.get("tensor_parallel", {}).get("autotp_size", 1) or 1
    found = {name: value for name, value in found.items() if value != 1}
    passes = [name for name in engine.get("compile", {}).get("passes") or () if name in ("autosp", "autotp")]
    return found | ({"deepspeed_config.compile.passes": passes} if passes else {})
