"""Run the policy, the reference or the guide for the quantities that transforms and losses read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from align.batch import Batch
from align.credit import Annotate
from align.learner.learner import Learner
from align.model.adapters import ModelRole
from align.ranks import exchange
from align.system.clock import Clock

# {quantity of the batch: (the model that provides it, quantity of `Policy.forward`)}
PROVIDED_BY: dict[str, tuple[ModelRole, str]] = {
    "old_logprob": ("policy", "logprob"),
    "entropy": ("policy", "entropy"),
    "value": ("policy", "value"),
    "ref_logprob": ("reference", "logprob"),
    "guide_logprob": ("guide", "logprob"),
    "reward_mask": ("reference", "activation_mask"),
    "kl_mask": ("reference", "activation_mask"),
}


class ForwardPasses:
    """Runs a model when a transform or a loss reads a quantity that only a model gives, once a row and quantity.

    `old_from` is `sampler` or `trainer`: whose log-probabilities are the old ones.
    """

    def __init__(self, learner: Learner, old_from: str, clock: Clock):
        self._learner, self._old_from, self._clock = learner, old_from, clock
        self.work: dict[str, int] = {}  # rows and tokens of all ranks that went through a model

    def for_batch(self, needs: Collection[str] = ()) -> Annotate:
        """Make the `annotate` of one batch and of whatever transforms make of it.

        A quantity that the batch brings along is not computed. A pass also gives those of `needs` that the same model
        provides.
        """
        done: dict[str, tuple[Tensor, Tensor]] = {}  # quantity -> (rows that have it, values)

        def computed(batch: Batch, name: str) -> bool:
            """Whether a model gives this quantity and not the batch."""
            return name in PROVIDED_BY and (name in done or getattr(batch, name) is None)

        def annotate(batch: Batch, names: Sequence[str], rows_B: Tensor, reader: str) -> Batch:
            """Fill the quantities named for the rows marked; `reader` is who asks, for messages."""
            if self._old_from == "sampler" and batch.sampler_logprob is not None:
                batch = replace(batch, old_logprob=batch.sampler_logprob)
            for name in names:
                if computed(batch, name):
                    along = [other for other in sorted(needs) if other != name and computed(batch, other)]
                    self._compute(batch, [name, *along], rows_B, done)
                    batch = replace(batch, **{name: done[name][1]})
                else:
                    batch.need(name, reader)
            return batch

        return annotate

    def _compute(
        self, batch: Batch, names: Sequence[str], rows_B: Tensor, done: dict[str, tuple[Tensor, Tensor]]
    ) -> None:
        """Compute the first of `names` for the rows that lack it, and those others that the same model provides."""
        nothing = torch.zeros_like(rows_B), torch.zeros_like(batch.weight)
        who, _ = PROVIDED_BY[names[0]]
        missing = rows_B & ~done.setdefault(names[0], nothing)[0]
        rows, tokens = exchange.total(batch, [int(missing.sum()), int(batch.mask[missing].sum())])
        if not rows:
            return
        reads = {name: PROVIDED_BY[name][1] for name in names if PROVIDED_BY[name][0] == who}
        with self._clock(f"pass/{names[0]}"):
            found = self._learner.score(batch, missing, tuple(dict.fromkeys(reads.values())), who)
        for quantity, read in reads.items():
            have, old = done.get(quantity, nothing)
            done[quantity] = have | missing, torch.where(missing[:, None], found[read], old)
        for unit, count in (("rows", rows), ("tokens", tokens)):
            key = f"pass/{names[0]}/{unit}"
            self.work[key] = self.work.get(key, 0) + count
