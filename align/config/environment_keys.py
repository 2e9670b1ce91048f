"""The keys of a recipe's section `environment`, or of one of several environments."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, FiniteFloat

from align.ranges import Count, Gib, Seconds, Section


class Environment(Section):
    """What the policy acts in, turn by turn; its reward is one more, named after it."""

    name: str = Field(description="package.module:attribute of a class, or of a function that makes an instance")
    args: dict[str, Any] = Field({}, description="arguments that an instance is made with")
    contract: Literal["tools", "text"] | None = Field(
        None, description="TRL's environment_factory, or Gymnasium's five values; default: text where it has a step"
    )
    max_turns: Count = Field(8, description="turns of the policy after which an episode ends")
    seconds: Seconds = Field(10.0, description="of one reset, of one step with all its tools, and of the reward")
    memory_gib: Gib = Field(1.0, description="address space of the process of each instance")
    at_once: Count = Field(16, description="instances on each rank that work at the same time")
    weight: FiniteFloat = Field(1.0, description="of its reward in the sum")
