"""The policy in its DeepSpeed engine: scores rows, updates on terms, saves and restores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import get_scheduler
from trl.models import prepare_deepspeed

from align.batch import Batch
from align.config import Optim
from align.credit import Credited
from align.layouts import Layout
from align.losses import Current
from align.plan import divide
from align.policy import Policy

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


class Learner:
    """Owns the trained weights. Every method is collective: all ranks call it with the same batch."""

    def __init__(
        self,
        accelerator: Accelerator,
        policy: Policy,
        layout: Layout,
        optim: Optim,
        reference: Policy | None = None,
    ):
        """`reference`: a frozen copy, where the policy has no adapter that could be switched off."""
        self.accelerator, self.layout, self.optim = accelerator, layout, optim
        parameters = [p for p in policy.parameters() if p.requires_grad]
        kinds = {
            "adamw": lambda: torch.optim.AdamW(parameters, lr=optim.lr, weight_decay=optim.weight_decay),
            "sgd": lambda: torch.optim.SGD(parameters, lr=optim.lr, weight_decay=optim.weight_decay),
        }
        optimizer = kinds[optim.optimizer]()
        schedule = get_scheduler(SCHEDULES[optim.schedule], optimizer, optim.warmup_steps, optim.schedule_steps)
        self.lr_factor = schedule.lr_lambdas[0]  # a pure function of the step, so a resume has nothing to restore
        _configure(accelerator, policy, optim)
        self.engine, _ = accelerator.prepare(policy, optimizer)
        self.reference = prepare_deepspeed(reference, accelerator) if reference is not None else None

    @property
    def model(self):
        """The transformers or PEFT model inside the engine."""
        return self.engine.module.model

    def _forward(
        self, batch: Batch, rows: list[int], wanted_BT: Tensor, quantities: tuple[str, ...], module: nn.Module
    ) -> dict[str, Tensor]:
        """{quantity: [rows,T] on the CPU}; no rows still runs a pass, over the batch's first row, for nothing."""
        part = batch.rows(torch.tensor(rows or [0]))
        wanted = wanted_BT[rows] if rows else torch.zeros_like(part.mask)
        inputs = self.layout.inputs(part, wanted)
        values = module(inputs, quantities)
        return {name: inputs.scatter(value, part.mask.shape) for name, value in values.items()}

    def score(self, batch: Batch, rows_B: Tensor, quantities: tuple[str, ...] = ("logprob",)) -> dict[str, Tensor]:
        """{quantity: [B,T] nats} of the policy for the rows marked, 0 elsewhere; the whole result on every rank."""
        return self._score(batch, rows_B, quantities, self.engine)

    def score_reference(self, batch: Batch, rows_B: Tensor) -> Tensor:
        """[B,T] log-probabilities of the reference: the frozen copy, or the base with the adapter off."""
        if self.reference is not None:
            return self._score(batch, rows_B, ("logprob",), self.reference)["logprob"]
        with self.model.disable_adapter():
            return self._score(batch, rows_B, ("logprob",), self.engine)["logprob"]

    @torch.no_grad()
    def _score(self, batch: Batch, rows_B: Tensor, quantities: tuple[str, ...], module: nn.Module) -> dict[str, Tensor]:
        accelerator = self.accelerator
        out = {name: torch.zeros(batch.mask.shape) for name in quantities}
        plan = divide(batch, rows_B, accelerator.num_processes, self.optim.micro_batch_tokens, self.layout.positions)
        found = []
        for rows in plan[accelerator.process_index]:
            values = self._forward(batch, rows, batch.mask, quantities, module)
            if rows:
                found.append((rows, values))
        for rows, values in gather_object(found):
            for name in quantities:
                out[name][rows] = values[name]
        return out

    def update(self, credits: Sequence[Credited], step: int) -> dict[str, float]:
        """One optimiser update on the sum of all terms; returns what was measured on the way.

        DeepSpeed averages gradients over ranks, so each rank's sum is multiplied by their number; the
        counts are those of the whole batch. Where no token carries gradient nothing is updated.
        """
        accelerator, ranks = self.accelerator, self.accelerator.num_processes
        batch = credits[0].batch
        live = torch.stack([credited.live for credited in credits]).any(0)
        if not live.any():
            return {"loss": 0.0, "rows/trained": 0, "tokens/trained": 0}
        quantities = ("logprob", *{q for c in credits for term in c.terms for q in term.loss.differentiates})
        plan = divide(batch, live.any(1), ranks, self.optim.micro_batch_tokens, self.layout.positions)
        lr = self.optim.lr * self.lr_factor(step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        plan = plan[accelerator.process_index]
        losses, measured = [], []
        for i, rows in enumerate(plan):
            current = Current(**self._forward(batch, rows, live, quantities, self.engine))
            loss = _loss(credits, current, torch.tensor(rows, dtype=torch.int64))
            losses.append(float(loss.detach()))
            measured.append(_measure(credits, current, torch.tensor(rows, dtype=torch.int64)))
            self.engine.set_gradient_accumulation_boundary(i == len(plan) - 1)
            self.engine.backward(loss * ranks, scale_wrt_gas=False)
        grad_norm = self._step()
        return {
            "loss": sum(gather_object(losses)),
            "grad_norm": grad_norm,
            "lr": lr,
            "rows/trained": int(live.any(1).sum()),
            "tokens/trained": int(live.sum()),
            **_summary(gather_object(measured)),
        }

    def _step(self) -> float:
        """Apply the accumulated gradient; its norm before clipping."""
        if self.engine.zero_optimization():
            self.engine.step()
            return float(self.engine.get_global_grad_norm())
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        self.engine.step()
        return norm

    def save(self, folder: Path) -> None:
        """Trained weights, optimiser and random states of all ranks."""
        frozen = any(not p.requires_grad for p in self.engine.module.parameters())
        self.accelerator.save_state(str(folder), exclude_frozen_parameters=frozen)

    def load(self, folder: Path) -> None:
        """What `save` wrote."""
        self.accelerator.load_state(str(folder), load_module_strict=False)


def _configure(accelerator: Accelerator, policy: Policy, optim: Optim) -> None:
    """What the recipe decides about DeepSpeed; the launch file decides the rest.

    The micro-batch size is a formality: the plan makes the micro-batches. Clipping at infinity is no
    clipping, while accelerate turns a 0 into its default of 1.
    """
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = 1
    config["gradient_clipping"] = optim.max_grad_norm
    if next(policy.parameters()).dtype == torch.bfloat16:
        config["bf16"] = {"enabled": True}


def _loss(credits: Sequence[Credited], current: Current, rows: Tensor) -> Tensor:
    """Scalar: what these rows add to the loss of the whole batch; 0 with a gradient of 0 for no rows."""
    total = current.logprob.sum() * 0.0
    if len(rows):
        for credited in credits:
            part = credited.batch.rows(rows)
            total = total + sum(term.share(current, part, rows) for term in credited.terms)
    return total


@torch.no_grad()
def _measure(credits: Sequence[Credited], current: Current, rows: Tensor) -> dict[str, Tensor]:
    """{metric: values of the live tokens} of these rows."""
    out = {}
    for credited in credits if len(rows) else ():
        part = credited.batch.rows(rows)
        for term in credited.terms:
            for name, value in term.loss.measure(current, part, term.weighted.rows(rows)).items():
                name = name if len(credits) == 1 else f"{credited.objective.name}/{name}"
                out[name] = value.float()
    return out


def _summary(measured: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean of each metric over the batch, all ranks; the extreme where its name asks for it."""
    out = {}
    for name in sorted({name for values in measured for name in values}):
        values = torch.cat([part[name] for part in measured if name in part])
        if len(values):
            reduce = {"_min": torch.min, "_max": torch.max}.get(name[-4:], torch.mean)
            out[name] = float(reduce(values))
    return out
