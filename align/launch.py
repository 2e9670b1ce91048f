"""Where a run runs, as far as its recipe must fit: what a launch file says, or the accelerator that came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from align.schema import ConfigError, read


@dataclass(frozen=True)
class Launch:
    """By default one process without ZeRO, as in launch/cpu.yaml."""

    name: str = "launch"
    processes: int = 1
    zero_stage: int = 0
    mixed_precision: str = "no"
    accumulation: int = 1  # micro-batches that the launch file wants for a step

    @property
    def problems(self) -> list[str]:
        """What no recipe can run with."""
        out = []
        if self.mixed_precision != "no":
            what = f"is {self.mixed_precision}, and the recipe's model.dtype decides; write 'no'"
            out.append(f"{self.name}: mixed_precision: {what}")
        if self.accumulation != 1:
            what = f"is {self.accumulation}, and optim.micro_batch_tokens makes the micro-batches; write 1"
            out.append(f"{self.name}: deepspeed_config.gradient_accumulation_steps: {what}")
        return out

    @property
    def shards(self) -> dict[str, int]:
        """Among how many processes ZeRO divides the optimiser's state, the gradients, and the weights."""
        return {
            part: self.processes if self.zero_stage >= stage else 1
            for part, stage in {"optimiser": 1, "gradients": 2, "weights": 3}.items()
        }


def of_file(path: Path) -> Launch:
    """A file of launch/. Raises `ConfigError` where it starts no DeepSpeed, `FileNotFoundError`."""
    source = read(path)
    given, engine = source.data, source.data.get("deepspeed_config")
    if given.get("distributed_type") != "DEEPSPEED" or not isinstance(engine, Mapping):
        what = "must be DEEPSPEED, with its deepspeed_config; begin with launch/cpu.yaml"
        raise ConfigError([source.problem(("distributed_type",), what)])
    numbers = {
        ("num_processes",): (given.get("num_processes", 1), 1),
        ("deepspeed_config", "zero_stage"): (engine.get("zero_stage", 2), 0),  # accelerate's own default
        ("deepspeed_config", "gradient_accumulation_steps"): (engine.get("gradient_accumulation_steps", 1), 1),
    }
    problems = [
        source.problem(key, f"must be a whole number of at least {least}, but it is {value!r}")
        for key, (value, least) in numbers.items()
        if not isinstance(value, int) or value < least
    ]
    if not problems and numbers["deepspeed_config", "zero_stage"][0] > 3:
        problems.append(source.problem(("deepspeed_config", "zero_stage"), "must be 0, 1, 2 or 3"))
    if "deepspeed_config_file" in engine:
        what = "is not read here; write its keys into this file"
        problems.append(source.problem(("deepspeed_config", "deepspeed_config_file"), what))
    if problems:
        raise ConfigError(problems)
    processes, stage, accumulation = (value for value, _ in numbers.values())
    return Launch(str(path), processes, stage, str(given.get("mixed_precision", "no")), accumulation)


def of_accelerator(accelerator: Accelerator) -> Launch:
    """What accelerate made of the launch file and of the command line."""
    plugin = accelerator.state.deepspeed_plugin
    return Launch(
        processes=accelerator.num_processes,
        zero_stage=plugin.zero_stage,
        mixed_precision=accelerator.mixed_precision,
        accumulation=accelerator.gradient_accumulation_steps,
    )
