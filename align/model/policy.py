"""The module that DeepSpeed wraps: a causal language model and the heads beside it, which give values for tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from align.batch import Batch
from align.losses.head import Head
from align.model.activations import activation_mask, recorded
from align.model.attention import attending
from align.model.cut import Cut
from align.model.layouts import Inputs, Layout
from align.model.quantize import count

CHUNK = 256  # positions whose logits exist at once

WHOLE = Cut()  # nothing is cut off

OF_LOGITS = ("logprob", "whole_logprob", "plain_logprob", "entropy", "ref_kl")  # quantities that logits give


@dataclass(frozen=True)
class Reference:
    """The reference's hidden states at the positions that predict, and how they become logits."""

    hidden: list[Tensor]  # [R,N,D] of each layer, or of the last alone where no head reads the others
    logits: Callable[[Tensor], Tensor]  # [K,D] -> [K,V]


class Policy(nn.Module):
    """A causal language model read as it is sampled: at one temperature and over the support that `cut` leaves, with
    heads beside it."""

    def __init__(self, model: nn.Module, temperature: float, heads: Sequence[Head] = (), cut: Cut = WHOLE):
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.cut = cut
        self.specs = {head.name: head for head in heads}
        self.heads = nn.ModuleDict({head.name: head.build(model.config) for head in heads})
        self.quadratic = _attention_cost(self.causal)

    @property
    def config(self) -> PretrainedConfig:
        """The model's configuration; accelerate and TRL size ZeRO's buckets by it."""
        return self.model.config

    @property
    def causal(self) -> nn.Module:
        """The transformers model, its adapters inside its layers."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def asks_reference(self, quantities: Sequence[str]) -> str | None:
        """Which states of the reference these quantities need: `layers`, `hidden` or None."""
        for head in self.specs.values():
            if head.reads == "reference" and set(head.gives) & set(quantities):
                return "layers"
        return "hidden" if "ref_kl" in quantities else None

    def forward(
        self,
        inputs: Inputs,
        quantities: Sequence[str] = ("logprob",),
        reference: Reference | None = None,
        chunks: int = 1,
    ) -> dict[str, Tensor]:
        """{quantity: [R,N]}: logprob, entropy and ref_kl in nats, `activation_mask` (MaPO's), and those of the heads.

        `logprob` is over the support that is sampled from; whole_logprob, entropy and ref_kl over the whole vocabulary,
        and so is plain_logprob, at temperature 1.
        Four quantities are asked for alone: `layers` gives a list of [R,N,D], one a layer without the embeddings,
        `hidden` a list with the last one only, `logits` [R,N,V], and `head_gap` [] the largest difference between
        these logits and the model's own. Sums run in float32. The head runs `chunks` times: under ZeRO-3 each run is
        collective, so all ranks need the same number.
        """
        if "head_gap" in quantities:
            return {"head_gap": self._head_gap(inputs)}
        if "layers" in quantities:
            return {"layers": self._layers(inputs)}
        with recorded(self.causal) if "activation_mask" in quantities else nullcontext() as activations:
            hidden = self._hidden(inputs)
        if "hidden" in quantities:
            return {"hidden": hidden}
        if "logits" in quantities:
            return {"logits": self.logits(hidden[-1])}
        out = self._vocabulary(hidden[-1], inputs.targets, quantities, reference, chunks)
        if activations is not None:
            out["activation_mask"] = activation_mask(activations, self._logit_means(hidden[-1], chunks), inputs)
        for name, head in self.heads.items():
            if set(self.specs[name].gives) & set(quantities):
                out |= head(hidden if self.specs[name].reads == "policy" else reference.hidden)
        return {name: out[name] for name in quantities}

    def _hidden(self, inputs: Inputs) -> list[Tensor]:
        """[[R,N,D]]: the states behind the final norm, at the positions that predict."""
        states = self._decode(inputs).last_hidden_state
        return [states[:, inputs.predict_at.to(states.device)]]

    def _layers(self, inputs: Inputs) -> list[Tensor]:
        """[R,N,D] of each layer at the positions that predict; the last one is behind the final norm."""
        states = self._decode(inputs, output_hidden_states=True).hidden_states
        return [layer[:, inputs.predict_at.to(layer.device)] for layer in states[1:]]

    def _decode(self, inputs: Inputs, **more):
        """Run the decoder without its head."""
        device = self.model.device
        with attending(self.config, inputs.attention, device) as confined:
            return self.causal.get_decoder()(
                input_ids=inputs.input_ids.to(device),
                position_ids=inputs.position_ids.to(device),
                use_cache=False,
                **confined,
                **more,
            )

    def logits(self, hidden: Tensor) -> Tensor:
        """[...,V] float32 logits of final hidden states, at the temperature and with the configuration's scalings."""
        config = self.config.get_text_config()
        logits = self.causal.get_output_embeddings()(hidden).float()
        if getattr(config, "logits_scaling", None):
            logits = logits / config.logits_scaling
        if getattr(config, "logit_scale", None):
            logits = logits * config.logit_scale
        cap = getattr(config, "final_logit_softcapping", None)
        if cap:
            logits = cap * torch.tanh(logits / cap)
        return logits if self.temperature == 1.0 else logits / self.temperature  # saves a pass over the vocabulary

    def _head_gap(self, inputs: Inputs) -> Tensor:
        """[] largest difference between `logits` and the model's own logits of the same tokens."""
        ids = inputs.input_ids.to(self.model.device)
        own = self.causal(input_ids=ids, use_cache=False).logits.float() / self.temperature
        states = self.causal.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        return (self.logits(states) - own).abs().max()

    def _logit_means(self, hidden: Tensor, chunks: int) -> Tensor:
        """[R,N] mean of the logits over the vocabulary, in chunks."""
        parts = hidden.flatten(0, 1).tensor_split(chunks)
        return torch.cat([self.logits(part).mean(-1) for part in parts]).view(hidden.shape[:2])

    def _vocabulary(
        self, hidden: Tensor, targets: Tensor, quantities: Sequence[str], reference: Reference | None, chunks: int
    ) -> dict[str, Tensor]:
        """{quantity of `OF_LOGITS`: [R,N]}, those asked for, in chunks: logits never exist for all tokens at once.

        Where the head itself is trained, the backward pass computes them again.
        """
        shape, wanted = hidden.shape[:2], [q for q in OF_LOGITS if q in quantities]
        if not wanted:
            return {}
        whole = [hidden.flatten(0, 1), targets.to(hidden.device).flatten()]
        if "ref_kl" in wanted:
            whole.append(reference.hidden[-1].flatten(0, 1))
        parts = list(zip(*(tensor.tensor_split(chunks) for tensor in whole), strict=True))

        def read(hidden: Tensor, targets: Tensor, ref_hidden: Tensor | None = None) -> tuple[Tensor, ...]:
            """The quantities wanted, each [K], of one chunk of K positions."""
            logits = self.logits(hidden)
            own = logprobs = self.cut.logits(logits, targets).log_softmax(-1)
            values = {"logprob": own.gather(-1, targets[:, None])[:, 0]}
            if self.cut.cuts and wanted != ["logprob"]:
                logprobs = logits.log_softmax(-1)
            if "whole_logprob" in wanted:
                values["whole_logprob"] = logprobs.gather(-1, targets[:, None])[:, 0]
            if "plain_logprob" in wanted:
                plain = (logits * self.temperature).log_softmax(-1)
                values["plain_logprob"] = plain.gather(-1, targets[:, None])[:, 0]
            if "entropy" in wanted:
                values["entropy"] = -(logprobs.exp() * logprobs).sum(-1)
            if "ref_kl" in wanted:
                with torch.no_grad():
                    ref = reference.logits(ref_hidden).log_softmax(-1)
                values["ref_kl"] = (ref.exp() * (ref - logprobs)).sum(-1)
            return tuple(values[name] for name in wanted)

        head = self.causal.get_output_embeddings()
        if not torch.is_grad_enabled():
            found = [read(*part) for part in parts]
        elif any(p.requires_grad for p in head.parameters()):
            found = [checkpoint(read, *part, use_reentrant=False) for part in parts]
        else:
            found = [_WithSlopes.apply(read, *part) for part in parts]
        return {name: torch.cat([values[i] for values in found]).view(shape) for i, name in enumerate(wanted)}


def read_tokens(module: nn.Module, layout: Layout, batch: Batch, wanted_BT: Tensor) -> Tensor:
    """[B,T] log-probabilities in nats of the tokens marked, over the whole vocabulary, 0 elsewhere, in one pass.

    `module` is a `Policy`, or the engine around one.
    """
    inputs = layout.inputs(batch, wanted_BT)
    return inputs.scatter(module(inputs, ("whole_logprob",))["whole_logprob"], wanted_BT.shape)


class _WithSlopes(torch.autograd.Function):
    """Computes values together with their gradients, while the logits are there; the backward pass only scales these.

    Each value depends on one hidden state and on nothing else that is trained.
    """

    @staticmethod
    def forward(ctx, read: Callable[..., tuple[Tensor, ...]], hidden: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            values = read(hidden, *rest)  # each [K]
            slopes = [torch.autograd.grad(value.sum(), hidden, retain_graph=True)[0] for value in values]
        ctx.save_for_backward(*slopes)
        return tuple(value.detach() for value in values)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(gradients, ctx.saved_tensors, strict=True)
        hidden = sum(gradient[:, None].to(slope.dtype) * slope for gradient, slope in pairs)
        return None, hidden, *[None] * (len(ctx.needs_input_grad) - 2)


def _attention_cost(causal: nn.Module) -> float:
    """About the cost of one pair of positions in attention, over all layers, as a fraction of the cost of one token in
    all weights: for even micro-batches. Of a mixture every expert counts."""
    text = causal.config.get_text_config()
    counts = {id(p): count(p) for p in causal.get_decoder().parameters()}
    for p in causal.get_input_embeddings().parameters():
        counts.pop(id(p), None)  # a look-up
    return 2 * text.num_hidden_layers * text.hidden_size / sum(counts.values())
