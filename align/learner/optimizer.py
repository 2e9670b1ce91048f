"""Make the optimiser and its schedule, and set what the recipe decides about DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from deepspeed import DeepSpeedEngine
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum
from torch import nn
from transformers import get_scheduler
from transformers.pytorch_utils import ALL_LAYERNORM_LAYERS
from transformers.trainer_pt_utils import get_parameter_names

from align.config.launch import engine_stage
from align.config.optim_keys import Optim
from align.model.policy import Policy

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def configure(accelerator: Accelerator, optim: Optim, dtype: str) -> None:
    """Set what the recipe decides about DeepSpeed, before any model is loaded; the launch file decides the rest.

    The micro-batch size is a formality: `micro_batches` makes them. Clipping at infinity is no clipping, while
    accelerate turns a 0 into its default of 1. In bfloat16 the weights that the optimiser moves are float32, and so
    are the sums of gradients over micro-batches and ranks.
    """
    plugin = accelerator.state.deepspeed_plugin
    config, zero = plugin.deepspeed_config, plugin.deepspeed_config["zero_optimization"]
    config["train_micro_batch_size_per_gpu"] = 1
    config["gradient_clipping"] = optim.max_grad_norm
    if dtype == "bfloat16":
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    zero["stage"] = engine_stage(zero["stage"], dtype)
    if optim.offload_optimizer == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
        config["zero_force_ds_cpu_optimizer"] = False  # `make_optimizer` has made the right one
    plugin.set_deepspeed_weakref()  # transformers loads with a copy of the configuration: weights divided, and in bf16


def make_optimizer(policy: Policy, optim: Optim) -> tuple[torch.optim.Optimizer, Callable[[int], float]]:
    """(optimiser of all trained parameters, factor of their learning rates by step).

    The factor is a pure function of the step, so a resumed run has nothing to restore.
    """
    groups = _parameter_groups(policy, optim)
    if optim.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups)
    else:
        adam = DeepSpeedCPUAdam if optim.offload_optimizer == "cpu" else torch.optim.AdamW
        optimizer = adam(groups, betas=optim.betas)
    schedule = get_scheduler(SCHEDULES[optim.schedule], optimizer, optim.warmup_steps, optim.schedule_steps)
    return optimizer, schedule.lr_lambdas[0]


@contextmanager
def states_here(engine: DeepSpeedEngine, optim: Optim) -> Iterator[None]:
    """Have the optimiser's states and float32 weights where it steps inside the block; with `between_steps` they are in
    host memory at all other times."""
    if optim.offload_optimizer != "between_steps":
        yield
        return
    engine.reload_states()
    try:
        yield
    finally:
        engine.offload_states(include=[OffloadStateTypeEnum.optim_states, OffloadStateTypeEnum.hp_params])


def _parameter_groups(policy: Policy, optim: Optim) -> list[dict]:
    """The model's parameters, and those of each head with its own learning rate and weight decay.

    Weight decay spares the biases and norms of a head, as in SparsePO's code and for OpenRLHF's critic.
    """
    groups = [{"params": [p for p in policy.model.parameters() if p.requires_grad]}]
    for name, head in policy.heads.items():
        spec = policy.specs[name]
        own = {"lr": optim.lr if spec.lr is None else spec.lr}
        decay = optim.weight_decay if spec.weight_decay is None else spec.weight_decay
        spared = _biases_and_norms(head) if decay else set()
        for weight_decay, wanted in ((decay, False), (0.0, True)):
            if params := [p for part, p in head.named_parameters() if (part in spared) is wanted]:
                groups.append({"params": params, "weight_decay": weight_decay, **own})
    return [{"lr": optim.lr, "weight_decay": optim.weight_decay} | group for group in groups]


def _biases_and_norms(head: nn.Module) -> set[str]:
    """Names of a head's parameters that transformers' trainer does not decay either."""
    decayed = get_parameter_names(head, ALL_LAYERNORM_LAYERS, ["bias"])
    return {name for name, _ in head.named_parameters()} - set(decayed)
