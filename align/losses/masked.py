"""SparsePO's and MaPO's loss: pairs whose tokens are weighed by masks (arXiv 2410.05102)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from align.batch import Batch
from align.heads import Masks
from align.losses.loss import Current, Loss, Weighted
from align.losses.pairs import Beta, kl_by_side, log_ratio, pair_loss, pair_rows, smoothed


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
        differentiates=("ref_kl", *(given if learned else ())),
        heads=head,
        warn=warn,
    )


def mask_l1(*, reward: Annotated[float, Ge(0)], kl: Annotated[float, Ge(0)]) -> Loss:
    """reward * ||m_u||_1 + kl * ||m_d||_1 over both responses of a pair, mean over pairs (arXiv 2410.05102)."""

    def weigh(batch: Batch) -> Weighted:
        chosen, _ = pair_rows(batch)
        return Weighted(batch.active.to(batch.weight.dtype), batch.active, float(len(chosen)))

    return Loss(
        "mask_l1",
        unit="pair",
        weigh=weigh,
        values=lambda current, batch: reward * current.reward_mask + kl * current.kl_mask,
        needs=("chosen",),
        weighs=("chosen",),
        differentiates=("reward_mask", "kl_mask"),
    )
