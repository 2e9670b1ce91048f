"""ZeRO-3 divides each parameter over the ranks: make some of them whole for a moment. Elsewhere they are already."""

from __future__ import annotations

from collections.abc import Iterable

from deepspeed.runtime.zero import GatheredParameters, register_external_parameter
from torch import nn

from align.model.policy import Policy


def gathered(parameters: Iterable[nn.Parameter]) -> GatheredParameters:
    """Make parameters whole inside the block; collective under ZeRO-3."""
    return GatheredParameters(list(parameters))


def share(policy: Policy, *others: Policy) -> None:
    """Have the weights of the policy's head, and of those of others that its chunks read too, gathered once around its
    window instead of once a chunk."""
    for module in (policy, *others):
        for parameter in module.causal.get_output_embeddings().parameters():
            if hasattr(parameter, "ds_id"):
                register_external_parameter(policy.window, parameter)
