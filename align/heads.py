"""Small modules trained beside the policy, in its engine and optimiser: the value head, SparsePO's masks.

A head reads hidden states at the prefix of each token, so it cannot see the token that it judges. It is saved
and resumed with the policy and left out of what is shipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # reading a recipe loads no engine
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Value:
    """The value head of PPO: linear on the policy's last hidden state."""

    hidden: Literal["shared", "detached"]  # detached: its gradient stops here and never reaches the policy
    lr: float | None  # None: that of the policy

    name = "value"
    reads = "policy"
    gives = ("value",)
    weight_decay = None

    def build(self, config: PretrainedConfig) -> nn.Module:
        return ValueHead(config.get_text_config().hidden_size, detached=self.hidden == "detached")


@dataclass(frozen=True)
class Masks:
    """SparsePO's mask network on the reference's hidden states (arXiv 2410.05102; `simple_all` of its code)."""

    kind: Literal["common", "independent"]  # one mask for reward and KL, or a network each
    init: Literal["one", "official"]
    weight_decay: float

    name = "masks"
    reads = "reference"
    gives = ("reward_mask", "kl_mask")
    lr = None

    def build(self, config: PretrainedConfig) -> nn.Module:
        text = config.get_text_config()
        return MaskNetworks(text.num_hidden_layers, text.hidden_size, self.kind, self.init)


Head = Value | Masks


class ValueHead(nn.Module):
    """Starts at 0 everywhere: without knowledge, no state is better than another."""

    def __init__(self, width: int, detached: bool):
        super().__init__()
        self.linear = nn.Linear(width, 1)
        self.detached = detached
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Sequence[Tensor]) -> dict[str, Tensor]:
        """`hidden`: one [R,N,D] a layer. {value: [R,N] float32}."""
        last = hidden[-1].detach() if self.detached else hidden[-1]
        return {"value": self.linear(last.to(self.linear.weight.dtype))[..., 0].float()}


class MaskNetwork(nn.Module):
    """ReLU(sum_l mix_l ReLU(w_l . LN(h_l) + b_l)): one LayerNorm for all layers, the embeddings not among them.

    `official` starts at normal weights of std 0.02 without bias, where a mask is small or dead; `one` at
    w = 0, b = 1 and mix = 1/L, a mask of 1, where SparsePO is TDPO1.
    """

    def __init__(self, layers: int, width: int, init: Literal["one", "official"]):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Linear(width, layers)  # row l reads layer l only
        self.mix = nn.Linear(layers, 1, bias=False)
        if init == "one":
            nn.init.zeros_(self.layers.weight)
            nn.init.ones_(self.layers.bias)
            nn.init.constant_(self.mix.weight, 1 / layers)
        else:
            nn.init.normal_(self.layers.weight, std=0.02)
            nn.init.zeros_(self.layers.bias)
            nn.init.normal_(self.mix.weight, std=0.02)

    def forward(self, hidden: Sequence[Tensor]) -> Tensor:
        """`hidden`: one [R,N,D] a layer. [R,N] >= 0."""
        weight, bias = self.layers.weight, self.layers.bias
        active = [(self.norm(h) @ weight[i] + bias[i]).relu() for i, h in enumerate(hidden)]
        return self.mix(torch.stack(active, -1))[..., 0].relu()


class MaskNetworks(nn.Module):
    """The reward mask and the KL mask."""

    def __init__(
        self, layers: int, width: int, kind: Literal["common", "independent"], init: Literal["one", "official"]
    ):
        super().__init__()
        count = {"common": 1, "independent": 2}[kind]
        self.networks = nn.ModuleList(MaskNetwork(layers, width, init) for _ in range(count))

    def forward(self, hidden: Sequence[Tensor]) -> dict[str, Tensor]:
        """`hidden`: one [R,N,D] a layer, of the reference. {reward_mask, kl_mask: [R,N] float32}."""
        hidden = [h.detach().to(self.networks[0].norm.weight.dtype) for h in hidden]
        masks = [network(hidden).float() for network in self.networks]
        return {"reward_mask": masks[0], "kl_mask": masks[-1]}
