"""The type of a head: a small module trained beside the policy, in its engine and optimiser.

A head reads hidden states at the prefix of each token, so it cannot see the token that it judges. It is saved and
resumed with the policy and left out of what is shipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from torch import nn

if TYPE_CHECKING:  # reading a recipe loads no engine
    from transformers import PretrainedConfig


class Head(Protocol):
    """Description of a module that a loss trains. Two losses may share a head if their descriptions are equal.

    The module maps hidden states, one [R,N,D] a layer, to {quantity: [R,N] float32}.
    """

    @property
    def name(self) -> str: ...

    @property
    def reads(self) -> Literal["policy", "reference"]:
        """Source of its hidden states: the policy's last layer, or every layer of the reference."""
        ...

    @property
    def gives(self) -> tuple[str, ...]:
        """Names of the quantities that it computes."""
        ...

    @property
    def lr(self) -> float | None:
        """Learning rate; None: the policy's."""
        ...

    @property
    def weight_decay(self) -> float | None:
        """Weight decay of its weights; None: the policy's. Its biases and norms have none."""
        ...

    def build(self, config: PretrainedConfig) -> nn.Module:
        """The module with its first weights."""
        ...
