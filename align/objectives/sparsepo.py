"""SparsePO and MaPO: arXiv 2410.05102."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn
from transformers import PretrainedConfig

from align.batch import Batch
from align.losses.loss import Current, Loss, TokenWeights
from align.losses.pairs import Beta, kl_by_side, log_ratio, pair_loss, pair_rows, smoothed
from align.objectives.objective import Objective


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


def pair_logistic_masked(
    *,
    beta: Beta = 0.1,
    masks: Literal["common", "independent", "activations"] = "common",
    init: Literal["one", "official"] = "one",
    mask_weight_decay: Annotated[float, Ge(0)] = 0.01,
) -> Loss:
    """-log sigmoid(beta ((u_w - u_l) - (D_l - D_w))), u = sum m_u lr, D = sum m_d KL(reference || policy).

    SparsePO and MaPO (arXiv 2410.05102). `masks`: `common` learns one mask for both, `independent` one each,
    `activations` takes MaPO's from the reference's activations, without parameters. (m_u, m_d) = (1, 0) is DPO
    and (1, 1) TDPO1. `init` and `mask_weight_decay` are of learned masks, see `heads.MaskNetwork`. A mask that is 0
    on every token stops all learning of its pair: the log counts those as `mask_dead`.
    """
    learned = masks != "activations"

    def both(current: Current, batch: Batch) -> tuple[Tensor, Tensor]:
        source = current if learned else batch
        return torch.where(batch.active, source.reward_mask, 0.0), torch.where(batch.active, source.kl_mask, 0.0)

    def score(current: Current, batch: Batch) -> Tensor:
        reward_mask, kl_mask = both(current, batch)
        kl = kl_mask * torch.where(batch.active, current.ref_kl, 0.0)
        return beta * ((reward_mask * log_ratio(current, batch)).sum(1) + kl.sum(1))

    def measure(current: Current, batch: Batch) -> dict[str, Tensor]:
        chosen, rejected = pair_rows(batch)
        out, zero = {}, []
        for name, mask in zip(("reward", "kl"), both(current, batch), strict=True):
            zero.append(mask == 0)
            for side, rows in (("chosen", chosen), ("rejected", rejected)):
                out[f"sparsity/{name}/{side}"] = (mask == 0)[rows][batch.active[rows]]
            out |= {f"mask/{name}": mask[batch.active], f"mask/{name}_max": mask[batch.active]}
        nothing = (zero[0] & zero[1] | ~batch.active).all(1)
        out["mask_dead"] = nothing[chosen] & nothing[rejected]
        return out | kl_by_side(current, batch)

    def warn(metrics: Mapping[str, float]) -> str | None:
        if metrics.get("mask_dead", 0.0) < 1:
            return None
        return "the masks are 0 on every token, so nothing is learned; start them at one (init: one), or lower l1"

    head = (Masks(masks, init, mask_weight_decay),) if learned else ()
    given = ("reward_mask", "kl_mask")
    return pair_loss(
        "pair_logistic_masked",
        score,
        smoothed(0.0, "conservative"),
        beta,
        measure,
        needs=("chosen", "ref_logprob", *(() if learned else given)),
        reads_current=("ref_kl", *(given if learned else ())),
        heads=head,
        warn=warn,
    )


def mask_l1(*, reward: Annotated[float, Ge(0)], kl: Annotated[float, Ge(0)]) -> Loss:
    """reward * ||m_u||_1 + kl * ||m_d||_1 over both responses of a pair, mean over pairs (arXiv 2410.05102)."""

    def weigh(batch: Batch) -> TokenWeights:
        chosen, _ = pair_rows(batch)
        return TokenWeights(batch.active.to(batch.weight.dtype), batch.active, float(len(chosen)))

    return Loss(
        "mask_l1",
        unit="pair",
        weigh=weigh,
        values=lambda current, batch: reward * current.reward_mask + kl * current.kl_mask,
        needs=("chosen",),
        weigh_needs=("chosen",),
        reads_current=("reward_mask", "kl_mask"),
    )


Coef = Annotated[float, Ge(0)]


def sparsepo(
    *,
    beta: Beta = 0.1,
    masks: Literal["common", "independent"] = "common",
    l1_reward: Coef = 0.0,
    l1_kl: Coef = 0.0,
    init: Literal["one", "official"] = "one",
    mask_weight_decay: Coef = 0.01,
) -> Objective:
    """TDPO1 with a learned weight for each token's log-ratio and for its KL: which tokens may move, and how far.

    The masks read the reference's hidden states and are trained with the policy. `common` is one mask for both,
    whose two L1 coefficients are halved as in the official code. `init: official` starts at a small mask, which
    may be dead; `one` near TDPO1. A mask of c everywhere is beta times c: compare runs at equal mean(mask) beta.
    The official `mask_dropout` has no effect in its code and is not here.

    Paper: SparsePO, arXiv 2410.05102.
    Limit: masks (1, 0) are DPO and (1, 1) TDPO1.
    """
    share = 0.5 if masks == "common" else 1.0
    loss = pair_logistic_masked(beta=beta, masks=masks, init=init, mask_weight_decay=mask_weight_decay)
    return Objective("sparsepo", (), (loss, mask_l1(reward=share * l1_reward, kl=share * l1_kl)))
