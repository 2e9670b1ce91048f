"""The policy in its DeepSpeed engine: computes log-probabilities, updates on losses, saves and loads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
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
from align.learner import agreement
from align.learner.engine_writer import keep_failures
from align.learner.micro_batches import UNTRACKED, divide
from align.learner.optimizer import make_optimizer, states_here
from align.learner.sharding import share
from align.losses.loss import Current, summarised
from align.model import layouts
from align.model.adapters import ModelRole, acting_as
from align.model.layouts import Layout
from align.model.policy import CHUNK, Policy, Reference
from align.model.recompute import recompute_layers

Micro = list[int]  # rows of one micro-batch of this rank


@dataclass(frozen=True)
class Outputs:
    """What the policy gave for the rows of a micro-batch, without its gradient."""

    source: int  # number of the source that the rows are of
    rows: list[int]  # of its batch
    current: Current


class Learner:
    """Owns the trained weights. Methods are collective: all ranks call them with the same batch."""

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
        """{quantity: [rows,T] on the CPU}. Without rows a pass runs over the batch's first one: it is collective."""
        part = batch.rows(torch.tensor(micro or [0]))
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
        """{quantity: [B,T]} of one model for the rows marked, 0 elsewhere: the whole result on every rank."""
        out = {name: torch.zeros(batch.mask.shape) for name in quantities}
        found = []
        tokens = self.optim.micro_batch_tokens * UNTRACKED
        for micro in self._divide(batch, batch.mask, rows_B, torch.zeros_like(rows_B), tokens):
            values = self._forward(batch, micro, batch.mask, quantities, who)
            if micro:
                found.append((micro, values))
        for rows, values in gather_object(found):
            for name in quantities:
                out[name][rows] = values[name]
        return out

    @torch.no_grad()
    def logits(self, ids: Sequence[int], who: ModelRole = "policy") -> Tensor:
        """[len(ids),V] float32 on the CPU: one model's logits behind each token, at the policy's temperature."""
        batch = Batch.of([0], [[*ids[1:], ids[0]]], prompt_ids=[ids[:1]])
        with self._acting_as(who) as module:
            return module(layouts.padded.inputs(batch, batch.mask), ("logits",))["logits"][0].cpu()

    def update(
        self, sources: Sequence[Sequence[Credited]], step: int, tell: Callable[[Outputs], None] = lambda outputs: None
    ) -> dict[str, float]:
        """Take one optimiser update on the sum of all losses; {metric: value}, those of the losses among them.

        `sources` holds the credited batches of each source, one an objective. DeepSpeed averages gradients over ranks,
        so each rank's sum is multiplied by their number; the counts are those of the whole batch. Where no token
        carries gradient, and where loss or gradient is not finite (`skipped`), weights and optimiser stay as they are
        on all ranks. `tell` gets the outputs of each of this rank's micro-batches.
        """
        plan = self._plan(sources)
        lr = self.optim.lr * self.lr_factor(step)
        for group, base in zip(self.engine.optimizer.param_groups, self.lrs, strict=True):
            group["lr"] = base * self.lr_factor(step)
        losses, measured, whole = [], [], 0.0
        for i, (source, micro) in enumerate(plan):
            loss, values, current = self._losses(sources[source], micro, sources)
            tell(Outputs(source, micro, current))
            losses.append(float(loss.detach()))
            measured.append(values)
            last = i == len(plan) - 1
            if last and not math.isfinite(whole := float(sum(gather_object(losses)))):
                loss = loss * math.nan  # the gradient tells all ranks
            self.engine.set_gradient_accumulation_boundary(last)
            self.engine.backward(loss * self.accelerator.num_processes, scale_wrt_gas=False)
        moved = {"grad_norm": self._step(), "lr": lr} if plan else {}
        trained, values = [_trained(credits) for credits in sources], _joined(gather_object(measured))
        return {
            **agreement.summary(values),
            "loss": whole,
            **moved,
            "skipped": int(not math.isfinite(moved.get("grad_norm", 0.0))),
            "rows/trained": sum(int(tokens.any(1).sum()) for tokens in trained),
            "tokens/trained": sum(int(tokens.sum()) for tokens in trained),
            **summarised(values),
        }

    @property
    def has_reference(self) -> bool:
        """Whether there is a reference: a model of its own, or the base below the adapter."""
        return "reference" in self.frozen or isinstance(self.model, PeftModel)

    @torch.no_grad()
    def measure(self, sources: Sequence[Sequence[Credited]]) -> tuple[float, dict[str, Tensor]]:
        """(loss, {metric: its values}) of a batch, without an update."""
        plan = self._plan(sources)
        found = [self._losses(sources[source], micro, sources) for source, micro in plan]
        losses = gather_object([float(loss) for loss, *_ in found])
        return sum(losses), _joined(gather_object([values for _, values, _ in found]))

    def _plan(self, sources: Sequence[Sequence[Credited]]) -> list[tuple[int, Micro]]:
        """[(number of a source, micro-batch)] of this rank, source after source."""
        out = []
        for source, credits in enumerate(sources):
            trained, coupled = _trained(credits), torch.stack([credited.coupled for credited in credits]).any(0)
            if trained.any():
                rows = trained.any(1) | coupled  # an empty response is half of a pair too
                micros = self._divide(credits[0].batch, trained, rows, coupled, self.optim.micro_batch_tokens)
                out += [(source, micro) for micro in micros]
        return out

    def _divide(self, batch: Batch, wanted_BT: Tensor, rows_B: Tensor, coupled_B: Tensor, tokens: int) -> list[Micro]:
        """This rank's micro-batches of the rows marked."""
        plan = divide(
            *(batch, wanted_BT, rows_B, coupled_B),
            ranks=self.accelerator.num_processes,
            tokens=tokens,
            layout=self.layout,
            quadratic=self.engine.module.quadratic,
        )
        return plan[self.accelerator.process_index]

    def _losses(
        self, credits: Sequence[Credited], micro: Micro, sources: Sequence[Sequence[Credited]]
    ) -> tuple[Tensor, dict[str, Tensor], Current]:
        """(contribution of these rows to the loss of the whole batch, {metric: values} of them, the policy's outputs
        without their gradient)."""
        quantities = _quantities(credits, sources)
        current = Current(**self._forward(credits[0].batch, micro, _trained(credits), quantities, "policy"))
        index = torch.tensor(micro, dtype=torch.int64)
        parts = [micro_batch(credited.batch, index, current) for credited in credits] if micro else []
        several = sum(map(len, sources)) > 1  # then a metric bears the name of its objective
        measured = _measure(credits, parts, current, index, several)
        return contribution(credits, parts, current, index), measured, _detached(current)

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


def micro_batch(batch: Batch, rows: Tensor, current: Current) -> Batch:
    """The rows of a micro-batch. Where no earlier pass gave old log-probabilities, they are the current ones: nothing
    was updated yet."""
    part = batch.rows(rows)
    return part if part.old_logprob is not None else replace(part, old_logprob=current.logprob.detach())


def contribution(credits: Sequence[Credited], parts: Sequence[Batch], current: Current, rows: Tensor) -> Tensor:
    """Scalar: the contribution of these rows to the loss of the whole batch; 0 with a gradient of 0 for no rows."""
    given = [value for f in fields(current) if (value := getattr(current, f.name)) is not None]
    total = sum(value.sum() * 0.0 for value in given)  # ZeRO: heads that no loss here reads take part too
    for credited, part in zip(credits, parts, strict=False):
        total = total + sum(term.contribution(current, part, rows) for term in credited.terms)
    return total


def _detached(current: Current) -> Current:
    return Current(**{f.name: None if (v := getattr(current, f.name)) is None else v.detach() for f in fields(current)})


def _quantities(credits: Sequence[Credited], sources: Sequence[Sequence[Credited]]) -> tuple[str, ...]:
    """Quantities that the update's pass computes: those that these losses read with a gradient, and those of all heads,
    since under ZeRO each head takes part in each pass."""
    losses = [term.loss for source in sources for credited in source for term in credited.terms]
    names = {name for loss in losses for head in loss.heads for name in head.gives}
    names |= {name for credited in credits for name in credited.reads_current}
    return ("logprob", *sorted(names))


def _trained(credits: Sequence[Credited]) -> Tensor:
    """[B,T] bool: tokens that some objective trains."""
    return torch.stack([credited.trained for credited in credits]).any(0)


@torch.no_grad()
def _measure(
    credits: Sequence[Credited], parts: Sequence[Batch], current: Current, rows: Tensor, several: bool
) -> dict[str, Tensor]:
    """{metric: values} of these rows."""
    out = {}
    if parts and (sampler := parts[0].sampler_logprob) is not None:
        out = agreement.of_rows(sampler, current.logprob, _trained(credits)[rows])
    for credited, part in zip(credits, parts, strict=False):
        for term in credited.terms:
            for name, value in term.loss.measure(current, part, term.token_weights.rows(rows)).items():
                out[f"{credited.objective.name}/{name}" if several else name] = value.float()
    return out


def _joined(measured: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """{metric: its values of all micro-batches of all ranks}."""
    names = sorted({name for values in measured for name in values})
    return {name: torch.cat([part[name] for part in measured if name in part]) for name in names}
