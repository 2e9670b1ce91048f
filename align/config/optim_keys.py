"""The keys of a recipe's section `optim`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.ranges import ClipBound, Count, CountOrZero, Fraction, Momentum, Positive, Section, WeightDecay


class Optim(Section):
    """The optimiser, its schedule, and the micro-batches of an update."""

    lr: Positive = 1e-5
    optimizer: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[Momentum, Momentum] = Field((0.9, 0.999), description="of adamw: its running mean and mean square")
    weight_decay: WeightDecay = 0.0
    offload_optimizer: Literal["none", "cpu", "between_steps"] = Field(
        "none",
        description="cpu: its states stay in host memory, and it steps there; between_steps: they wait there for it",
    )
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    schedule_steps: Count | None = Field(None, description="steps that schedules span; default: run.steps")
    warmup_steps: CountOrZero = 0
    warmup_share: Fraction | None = Field(None, description="instead of warmup_steps: part of what schedules span")
    max_grad_norm: ClipBound = Field(1.0, description=".inf does not clip")
    micro_batch_tokens: Count = Field(
        4096,
        description="most tokens in one forward and backward pass, with their attention; 4 x without a gradient",
    )
    layout: Literal["padded", "shared_prefix"] | None = Field(
        None, description="default: shared_prefix where the model can"
    )
    checkpoint_activations: bool | None = Field(
        None,
        description="compute layers again in the backward pass instead of keeping what they computed: less memory,"
        " and one more forward pass of time; default: on GPUs above 1B parameters",
    )
    updates_per_step: Count = Field(1, description="optimiser updates on the same rollouts")
