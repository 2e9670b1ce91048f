"""Every preference objective with its oracle, for the invariants that all of them must keep."""

from dataclasses import replace

from align.objectives import bonbon, dpo, ipo, mapo, sft, simpo, sparsepo, tdpo1, tdpo2, tgdpo
from align.objectives.bonbon import best_of_n_beta
from support import oracle
from support.batches import random_pairs

FIELDS = ("logprob", "ref_kl", "reward_mask", "kl_mask")
L1 = {"l1_reward": 0.03, "l1_kl": 0.01}

EVERY = {  # name: (objective, oracle of a pair)
    "dpo": (dpo(beta=0.7), lambda w, x: oracle.dpo(w, x, 0.7)),
    "dpo conservative": (dpo(beta=0.7, label_smoothing=0.2), lambda w, x: oracle.dpo(w, x, 0.7, 0.2)),
    "dpo robust": (
        dpo(beta=0.7, label_smoothing=0.2, smoothing="robust"),
        lambda w, x: oracle.dpo(w, x, 0.7, 0.2, True),
    ),
    "ipo mean": (ipo(beta=0.3), lambda w, x: oracle.ipo(w, x, 0.3)),
    "ipo sum": (ipo(beta=0.3, form="sum"), lambda w, x: oracle.ipo(w, x, 0.3, sum)),
    "simpo": (simpo(), lambda w, x: oracle.simpo(w, x, 2.0, 0.5)),
    "simpo smoothed": (
        simpo(beta=1.5, gamma_beta_ratio=0.2, label_smoothing=0.1),
        lambda w, x: oracle.simpo(w, x, 1.5, 0.2, 0.1),
    ),
    "tdpo1": (tdpo1(beta=0.7), lambda w, x: oracle.tdpo(w, x, 0.7)),
    "tdpo2": (tdpo2(beta=0.7, alpha=0.4), lambda w, x: oracle.tdpo(w, x, 0.7, 0.4)),
    "tgdpo": (tgdpo(beta=0.7, alpha=2, guide_beta=0.9), lambda w, x: oracle.tgdpo(w, x, 0.7, 2, 0.9)),
    "tgdpo floor": (tgdpo(beta=0.7, alpha=2, floor=0.6), lambda w, x: oracle.tgdpo(w, x, 0.7, 2, 0.7, 0.6)),
    "sparsepo common": (sparsepo(beta=0.7, **L1), lambda w, x: oracle.sparsepo(w, x, 0.7, 0.015, 0.005)),
    "sparsepo independent": (
        sparsepo(beta=0.7, masks="independent", **L1),
        lambda w, x: oracle.sparsepo(w, x, 0.7, 0.03, 0.01),
    ),
    "mapo": (mapo(beta=0.7), lambda w, x: oracle.sparsepo(w, x, 0.7)),
    "bonbon": (bonbon(n=3, alpha=0.1), lambda w, x: oracle.bonbon(w, x, 3, 0.1)),
    "bonbon code": (
        bonbon(n=3, alpha=0.1, variant="code"),
        lambda w, x: 0.9 * oracle.dpo(w, x, best_of_n_beta(3)) - 0.1 * sum(w["logprob"]),
    ),
    "sft sum": (sft(form="sum"), lambda w, x: -sum(w["logprob"])),
    "sft mean": (sft(), lambda w, x: -oracle.mean(w["logprob"])),
    "half of dpo": (replace(dpo(beta=0.7), weight=0.5), lambda w, x: oracle.dpo(w, x, 0.7) / 2),
}


def sides(batch, current):
    """[(chosen, rejected)] of the pairs as dictionaries of lists, from rows in any order."""
    quantities = {name: getattr(batch, name) for name in ("ref_logprob", "guide_logprob", "reward_mask", "kl_mask")}
    quantities |= current
    found = {}
    for i, group in enumerate(batch.group.tolist()):
        length = int(batch.length[i])
        row = {name: value[i, :length].tolist() for name, value in quantities.items()}
        found.setdefault(group, {})[bool(batch.chosen[i])] = row
    return [(pair[True], pair[False]) for pair in found.values()]


def drawn(name, seed, **sizes):
    """(objective, batch, fields of `Current` that it reads)"""
    objective, _ = EVERY[name]
    batch, current = random_pairs(seed, **sizes)
    reads = {"logprob"} | {field for loss in objective.losses for field in loss.reads_current}
    if name == "sparsepo common":
        current["kl_mask"] = current["reward_mask"]
    return objective, batch, {field: current[field] for field in FIELDS if field in reads}
