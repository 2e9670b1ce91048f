"""SparsePO: Controlling Preference Alignment of LLMs via Sparse Token Masks, arXiv 2410.05102.

    mask = relu(sum over layers of mix * relu(w . layer_norm(hidden) + b))          of the reference, at each prefix
    kl = KL(reference || policy), over the whole vocabulary                         of each token
    score = sum over tokens of (reward_mask * (logprob - ref_logprob) + kl_mask * kl)             of a response
    loss = -log sigmoid(beta * (score[chosen] - score[rejected])) + l1_reward * sum(reward_mask) + l1_kl * sum(kl_mask)

The L1 sums run over the tokens of both responses of a pair. (reward_mask, kl_mask) = (1, 0) is DPO and (1, 1) TDPO1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from align.batch import Batch
from align.losses.loss import Current, Loss, TokenWeights
from align.losses.pairs import kl_by_side, log_ratio, pair_loss, pair_rows, smoothed
from align.objectives.objective import Objective
from align.ranges import Beta, Coef

if TYPE_CHECKING:  # reading a recipe loads no engine
    from transformers import PretrainedConfig

MASKS = ("reward_mask", "kl_mask")

Kind = Literal["common", "independent", "reward", "kl"]  # see `sparsepo`

Init = Literal["one", "official"]  # see MaskNetwork


class MaskNetwork(nn.Module):
    """A mask from the hidden states of all layers but the embeddings; one LayerNorm for all layers.

    `official` starts at normal weights of std 0.02 without bias, where a mask is small or dead; `one` at
    w = 0, b = 1 and mix = 1/L, a mask of 1, where SparsePO is TDPO1.
    """

    def __init__(self, layers: int, width: int, init: Init):
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
        """[R,N] >= 0, from one [R,N,D] a layer."""
        weight, bias = self.layers.weight, self.layers.bias
        active = [(self.norm(h) @ weight[i] + bias[i]).relu() for i, h in enumerate(hidden)]
        return self.mix(torch.stack(active, -1))[..., 0].relu()


class MaskNetworks(nn.Module):
    """The reward mask and the KL mask; the one that is not learned is 1."""

    def __init__(self, layers: int, width: int, kind: Kind, init: Init):
        super().__init__()
        self.kind = kind
        count = 2 if kind == "independent" else 1
        self.networks = nn.ModuleList(MaskNetwork(layers, width, init) for _ in range(count))

    def forward(self, hidden: Sequence[Tensor]) -> dict[str, Tensor]:
        """{reward_mask, kl_mask: [R,N] float32}, from one [R,N,D] a layer of the reference."""
        hidden = [h.detach().to(self.networks[0].norm.weight.dtype) for h in hidden]
        masks = [network(hidden).float() for network in self.networks]
        one = torch.ones_like(masks[0])
        return {
            "reward_mask": one if self.kind == "kl" else masks[0],
            "kl_mask": one if self.kind == "reward" else masks[-1],
        }


@dataclass(frozen=True)
class Masks:
    """Head (`losses/head.py`) that trains the mask networks; `simple_all` of the official code."""

    kind: Kind
    init: Init
    weight_decay: float

    name = "masks"
    reads = "reference"
    gives = MASKS
    lr = None

    def build(self, config: PretrainedConfig) -> nn.Module:
        """The networks with their first weights, of the width and depth of this model."""
        text = config.get_text_config()
        return MaskNetworks(text.num_hidden_layers, text.hidden_size, self.kind, self.init)


def masks_on_active(source: Current | Batch, batch: Batch) -> tuple[Tensor, Tensor]:
    """([B,T] reward mask, [B,T] KL mask), 0 at tokens that take no part."""
    return torch.where(batch.active, source.reward_mask, 0.0), torch.where(batch.active, source.kl_mask, 0.0)


def mask_measures(reward_mask: Tensor, kl_mask: Tensor, batch: Batch) -> dict[str, Tensor]:
    """{metric: values}: each mask and the tokens where it is 0, by side; the pairs where both are 0 on every token."""
    chosen, rejected = pair_rows(batch)
    out = {}
    for name, mask in (("reward", reward_mask), ("kl", kl_mask)):
        for side, rows in (("chosen", chosen), ("rejected", rejected)):
            out[f"sparsity/{name}/{side}"] = (mask == 0)[rows][batch.active[rows]]
        out |= {f"mask/{name}": mask[batch.active], f"mask/{name}_max": mask[batch.active]}
    dead = ((reward_mask == 0) & (kl_mask == 0) | ~batch.active).all(1)
    return out | {"mask_dead": dead[chosen] & dead[rejected]}


def warn_dead(metrics: Mapping[str, float]) -> str | None:
    """The message where no pair of a step has a mask above 0."""
    if metrics.get("mask_dead", 0.0) < 1:
        return None
    return "the masks are 0 on every token, so nothing is learned; start them at one (init: one), or lower l1"


def pair_logistic_masked(
    *,
    beta: Beta = 0.1,
    masks: Kind | Literal["activations"] = "common",
    init: Init = "one",
    mask_weight_decay: Coef = 0.01,
) -> Loss:
    """TDPO1's loss with a mask on each token's log-ratio and on its KL: SparsePO and MaPO (arXiv 2410.05102).

    `masks`: `common` learns one mask for both, `independent` one each, `reward` and `kl` one for that alone, where the
    other is 1; `activations` takes MaPO's from the reference's activations, without parameters. `init` and
    `mask_weight_decay` are of learned masks, see `MaskNetwork`; the decay spares biases and norms. A mask that is 0 on
    every token stops all learning of its pair: the log counts those as `mask_dead`.
    """
    learned = masks != "activations"

    def both(current: Current, batch: Batch) -> tuple[Tensor, Tensor]:
        return masks_on_active(current if learned else batch, batch)

    def score(current: Current, batch: Batch) -> Tensor:
        reward_mask, kl_mask = both(current, batch)
        kl = kl_mask * torch.where(batch.active, current.ref_kl, 0.0)
        return beta * ((reward_mask * log_ratio(current, batch)).sum(1) + kl.sum(1))

    def measure(current: Current, batch: Batch) -> dict[str, Tensor]:
        return mask_measures(*both(current, batch), batch) | kl_by_side(current, batch)

    return pair_loss(
        "pair_logistic_masked",
        score,
        smoothed(0.0, "conservative"),
        beta,
        measure,
        needs=("chosen", "ref_logprob", *(() if learned else MASKS)),
        reads_current=("ref_kl", *(MASKS if learned else ())),
        heads=(Masks(masks, init, mask_weight_decay),) if learned else (),
        warn=warn_dead,
    )


def mask_l1(*, reward: Coef, kl: Coef) -> Loss:
    """reward * sum(reward_mask) + kl * sum(kl_mask) over both responses of a pair, mean over pairs: SparsePO's L1."""

    def weigh(batch: Batch) -> TokenWeights:
        chosen, _ = pair_rows(batch)
        return TokenWeights(batch.active.to(batch.weight.dtype), batch.active, float(len(chosen)))

    return Loss(
        "mask_l1",
        unit="pair",
        weigh=weigh,
        scope="group",
        values=lambda current, batch: reward * current.reward_mask + kl * current.kl_mask,
        needs=("chosen",),
        weigh_needs=("chosen",),
        reads_current=MASKS,
    )


def sparsepo(
    *,
    beta: Beta = 0.1,
    masks: Kind = "common",
    l1_reward: Coef = 0.0,
    l1_kl: Coef = 0.0,
    init: Init = "one",
    mask_weight_decay: Coef = 0.01,
) -> Objective:
    """TDPO1 with a learned weight for each token's log-ratio and for its KL: which tokens may move, and how far.

    The masks read the reference's hidden states and are trained with the policy. `common` is one mask for both,
    whose two L1 coefficients are halved as in the official code; `independent` is one each; `reward` and `kl` mask
    that alone and leave the other as in TDPO1. `mask_weight_decay` spares biases and norms. `init: official` starts
    at a small mask, which may be dead; `one` near TDPO1. A common mask of c everywhere is beta times c: compare runs
    at equal mean(mask) beta. The official `mask_dropout` has no effect in its code and is not here.

    Paper: SparsePO, arXiv 2410.05102.
    Limit: masks (1, 0) are DPO and (1, 1) TDPO1.
    """
    for other, name, value in (("kl", "l1_reward", l1_reward), ("reward", "l1_kl", l1_kl)):
        if masks == other and value:
            raise ValueError(f"{name}: there is no such mask where masks is {masks}; leave {name} out")
    part = 0.5 if masks == "common" else 1.0
    loss = pair_logistic_masked(beta=beta, masks=masks, init=init, mask_weight_decay=mask_weight_decay)
    return Objective("sparsepo", (), (loss, mask_l1(reward=part * l1_reward, kl=part * l1_kl)))
