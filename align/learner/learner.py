"""The policy in its DeepSpeed engine: computes log-probabilities, updates on losses, saves and loads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from trl.models import prepare_deepspeed

from align.batch import Batch
from align.config.optim_keys import Optim
from align.credit import Credited
from align.learner import agreement, moves
from align.learner.engine_writer import keep_failures
from align.learner.losses import contribution, detached, joined, measure, micro_batch, quantities_of, trained_of
from align.learner.micro_batches import UNTRACKED
from align.learner.optimizer import make_optimizer, states_here
from align.learner.sharding import share
from align.losses.loss import Current, summarised
from align.model import layouts
from align.model.adapters import ModelRole, acting_as
from align.model.layouts import Layout
from align.model.policy import CHUNK, Policy, Reference
from align.model.recompute import recompute_layers
from align.ranks import exchange

Micro = list[int]  # rows of one micro-batch of this rank

NOTHING = Batch.of([0], [[0]], prompt_ids=[[0]])  # what a pass runs over where a rank has no row for it


@dataclass(frozen=True)
class Outputs:
    """What the policy gave for the rows of a micro-batch, without its gradient."""

    source: int  # number of the source that the rows are of
    rows: list[int]  # of its batch, that of all ranks
    current: Current


@dataclass(frozen=True)
class Plan:
    """What a step's updates compute."""

    sources: Sequence[Sequence[Credited]]  # each source's credited batches, as this rank computes them
    # of this rank, source after source: number of the source, its rows here, and these in the batch of all ranks
    micros: Sequence[tuple[int, Micro, Sequence[int]]]
    trained: Mapping[str, int]  # {metric: how much is trained, over all ranks}


class Learner:
    """Owns the trained weights. Methods are collective: all ranks call them with the same batch, or each with its rows
    of it (`Batch.row`), which then go to the rank that the plan of micro-batches says, and their values back."""

    def __init__(
        self,
        accelerator: Accelerator,
        policy: Policy,
        layout: Layout,
        optim: Optim,
        frozen: Mapping[ModelRole, Policy] = MappingProxyType({}),
    ):
        """`frozen` holds reference and guide where they are models of their own, and not the policy's base with its
        adapter off or with another one. `optimizer.configure` came before any of them was loaded."""
        self.accelerator, self.layout, self.optim = accelerator, layout, optim
        self.chunk = CHUNK  # positions whose logits exist at once
        optimizer, self.lr_factor = make_optimizer(policy, optim)
        self.lrs = [group["initial_lr"] for group in optimizer.param_groups]
        if optim.checkpoint_activations:
            recompute_layers(policy.causal)
        self.engine, _ = accelerator.prepare(policy, optimizer)
        self.writer = keep_failures(self.engine)
        self.frozen = {who: prepare_deepspeed(other, accelerator) for who, other in frozen.items()}
        for module in (policy, *frozen.values()):
            module.device = accelerator.device
            share(module)
        if "reference" in frozen:  # whose head the policy's chunks read too
            share(policy, frozen["reference"])
        with states_here(self.engine, optim):  # and away behind it
            pass

    @property
    def model(self):
        """The transformers or PEFT model inside the engine."""
        return self.engine.module.model

    @contextmanager
    def _acting_as(self, who: ModelRole) -> Iterator[nn.Module]:
        """Give the module that computes as the policy, the reference or the guide inside the block."""
        if who == "policy":
            yield self.engine
        elif who in self.frozen:
            yield self.frozen[who]
        else:
            with acting_as(self.model, who):
                yield self.engine

    def _forward(
        self, batch: Batch, micro: Micro, wanted_BT: Tensor, quantities: Sequence[str], who: ModelRole
    ) -> dict[str, Tensor]:
        """{quantity: [rows,T] on the CPU}. Without rows a pass runs over one that is made up: it is collective."""
        part = batch.rows(torch.tensor(micro)) if micro else NOTHING
        wanted = wanted_BT[micro] if micro else torch.zeros_like(part.mask)
        inputs = self.layout.inputs(part, wanted)
        reference, states = None, self.engine.module.asks_reference(quantities)
        if states:
            with torch.no_grad(), self._acting_as("reference") as module:
                hidden = module(inputs, (states,))[states]
            reference = Reference(hidden, self.frozen.get("reference", self.engine).module.logits)
        with self._acting_as(who) as module:
            values = module(inputs, quantities, reference, self.chunk)
        return {name: inputs.scatter(value, part.mask.shape) for name, value in values.items()}

    @torch.no_grad()
    def score(
        self, batch: Batch, rows_B: Tensor, quantities: Sequence[str] = ("logprob",), who: ModelRole = "policy"
    ) -> dict[str, Tensor]:
        """{quantity: [B,T]} of one model for the rows marked, 0 elsewhere, on every rank that has the row."""
        tokens = self.optim.micro_batch_tokens * UNTRACKED
        way = self._route(batch, batch.mask, rows_B, torch.zeros_like(rows_B), tokens)
        here = moves.bring_batch(way, batch)
        found = []
        for micro in way.micros:
            values = self._forward(here, micro, here.mask, quantities, who)
            if micro:
                found.append((micro, values))
        return moves.take_back(way, found, quantities, here, batch)

    @torch.no_grad()
    def logits(self, ids: Sequence[int], who: ModelRole = "policy") -> Tensor:
        """[len(ids),V] float32 on the CPU: one model's logits behind each token, at the policy's temperature."""
        batch = Batch.of([0], [[*ids[1:], ids[0]]], prompt_ids=[ids[:1]])
        with self._acting_as(who) as module:
            return module(layouts.padded.inputs(batch, batch.mask), ("logits",))["logits"][0].cpu()

    def update(self, plan: Plan, step: int, tell: Callable[[Outputs], None] = lambda outputs: None) -> dict[str, float]:
        """Take one optimiser update on the sum of all losses; {metric: value}, those of the losses among them.

        DeepSpeed averages gradients over ranks, so each rank's sum is multiplied by their number; the counts are those
        of the whole batch. Where no token carries gradient, and where loss or gradient is not finite (`skipped`),
        weights and optimiser stay as they are on all ranks. `tell` gets the outputs of each of this rank's
        micro-batches.
        """
        lr = self.optim.lr * self.lr_factor(step)
        for group, base in zip(self.engine.optimizer.param_groups, self.lrs, strict=True):
            group["lr"] = base * self.lr_factor(step)
        losses, measured, whole = [], [], 0.0
        for i, (source, micro, numbers) in enumerate(plan.micros):
            loss, values, current = self._losses(plan.sources[source], micro, plan.sources)
            tell(Outputs(source, numbers, current))
            losses.append(float(loss.detach()))
            measured.append(values)
            last = i == len(plan.micros) - 1
            if last and not math.isfinite(whole := float(sum(gather_object(losses)))):
                loss = loss * math.nan  # the gradient tells all ranks
            self.engine.set_gradient_accumulation_boundary(last)
            self.engine.backward(loss * self.accelerator.num_processes, scale_wrt_gas=False)
        moved = {"grad_norm": self._step(), "lr": lr} if plan.micros else {}
        values = joined(gather_object(measured))
        return {
            **agreement.summary(values),
            "loss": whole,
            **moved,
            "skipped": int(not math.isfinite(moved.get("grad_norm", 0.0))),
            **plan.trained,
            **summarised(values),
        }

    @property
    def has_reference(self) -> bool:
        """Whether there is a reference: a model of its own, or the base below the adapter."""
        return "reference" in self.frozen or isinstance(self.model, PeftModel)

    @torch.no_grad()
    def measure(self, sources: Sequence[Sequence[Credited]]) -> tuple[float, dict[str, Tensor]]:
        """(loss, {metric: its values}) of a batch, without an update."""
        plan = self.plan(sources)
        found = [self._losses(plan.sources[source], micro, plan.sources) for source, micro, _ in plan.micros]
        losses = gather_object([float(loss) for loss, *_ in found])
        return sum(losses), joined(gather_object([values for _, values, _ in found]))

    def plan(self, sources: Sequence[Sequence[Credited]]) -> Plan:
        """Divide what is trained into micro-batches of all ranks, and move their rows to who computes them. Collective.

        `sources` holds the credited batches of each source, one an objective.
        """
        here, micros, counts = [], [], []
        for source, credits in enumerate(sources):
            batch, trained = credits[0].batch, trained_of(credits)
            counts.append(exchange.total(batch, [int(trained.any(1).sum()), int(trained.sum())]))
            here.append(credits)
            if counts[-1][1]:
                coupled = torch.stack([credited.coupled for credited in credits]).any(0)
                rows = trained.any(1) | coupled  # an empty response is half of a pair too
                way = self._route(batch, trained, rows, coupled, self.optim.micro_batch_tokens)
                here[-1] = moves.bring_credited(way, credits)
                micros += [(source, micro, way.numbers(micro)) for micro in way.micros]
        names = ("rows/trained", "tokens/trained")
        trained = {name: sum(of_source[i] for of_source in counts) for i, name in enumerate(names)}
        return Plan(here, micros, trained)

    def _route(self, batch: Batch, wanted_BT: Tensor, rows_B: Tensor, coupled_B: Tensor, tokens: int) -> moves.Route:
        """This rank's micro-batches of the rows marked, and how these rows get here."""
        return moves.route(
            *(batch, wanted_BT, rows_B, coupled_B),
            place=(self.accelerator.process_index, self.accelerator.num_processes),
            tokens=tokens,
            layout=self.layout,
            quadratic=self.engine.module.quadratic,
        )

    def _losses(
        self, credits: Sequence[Credited], micro: Micro, sources: Sequence[Sequence[Credited]]
    ) -> tuple[Tensor, dict[str, Tensor], Current]:
        """(contribution of these rows to the loss of the whole batch, {metric: values} of them, the policy's outputs
        without their gradient)."""
        quantities = quantities_of(credits, sources)
        current = Current(**self._forward(credits[0].batch, micro, trained_of(credits), quantities, "policy"))
        index = torch.tensor(micro, dtype=torch.int64)
        parts = [micro_batch(credited.batch, index, current) for credited in credits] if micro else []
        several = sum(map(len, sources)) > 1  # then a metric bears the name of its objective
        measured = measure(credits, parts, current, index, several)
        return contribution(credits, parts, current, index), measured, detached(current)

    def _step(self) -> float:
        """Apply the accumulated gradient if it is finite; return its norm before clipping, over all ranks."""
        if self.engine.zero_optimization():
            with states_here(self.engine, self.optim):
                self.engine.step()  # skips what is not finite by itself, and calls its norm infinite
            return float(self.engine.get_global_grad_norm())
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if math.isfinite(norm):
            self.engine.step()
        else:
            self.engine.zero_grad()
        return norm

    def save(self, folder: Path) -> None:
        """Write trained weights, optimiser and random states of all ranks.

        Raises `OSError` or `RuntimeError` for a file that this rank could not write, when all ranks are through.
        """
        frozen = any(not p.requires_grad for p in self.engine.module.parameters())
        with states_here(self.engine, self.optim):
            self.accelerator.save_state(str(folder), exclude_frozen_parameters=frozen, save_latest=False)
        self.writer.raise_failure()

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""
        with states_here(self.engine, self.optim):
            self.accelerator.load_state(str(folder), load_module_strict=False)
