"""The module that DeepSpeed wraps: a causal language model and the heads beside it, which give values for tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import linear
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


class Window(nn.Module):
    """Runs a function that reads a head's weights as they are, chunk by chunk.

    A head's own call would gather them under ZeRO-3, and let them go, for each chunk. DeepSpeed does that once around
    this module, and once more around its backward pass, for the parameters that `learner.sharding.share` registers.
    """

    def forward(self, *tensors: Tensor, run: Callable[..., Tensor | tuple[Tensor, ...]]):
        """What `run` makes of the tensors."""
        return run(*tensors)


class Policy(nn.Module):
    """A causal language model read as it is sampled: at one temperature and over the support that `cut` leaves, with
    heads beside it."""

    def __init__(self, model: nn.Module, temperature: float, heads: Sequence[Head] = (), cut: Cut = WHOLE):
        super().__init__()
        self.model = model
        self.device = model.device  # where it computes; its weights may wait elsewhere
        self.temperature = temperature
        self.cut = cut
        self.specs = {head.name: head for head in heads}
        self.heads = nn.ModuleDict({head.name: head.build(model.config) for head in heads})
        self.heads.to(self.causal.dtype)  # DeepSpeed would cast them at all stages but ZeRO-3, which needs one dtype
        self.window = Window()
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
        chunk: int = CHUNK,
    ) -> dict[str, Tensor]:
        """{quantity: [R,N]}: logprob, entropy and ref_kl in nats, `activation_mask` (MaPO's), and those of the heads.

        `logprob` is over the support that is sampled from; whole_logprob, entropy and ref_kl over the whole vocabulary,
        and so is plain_logprob, at temperature 1.
        Four quantities are asked for alone: `layers` gives a list of [R,N,D], one a layer without the embeddings,
        `hidden` a list with the last one only, `logits` [R,N,V], and `head_gap` [] the largest difference between
        these logits and the model's own. Sums run in float32. Logits exist for `chunk` positions at once.
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
            return {"logits": self.window(hidden[-1], run=self.logits)}
        out = self._vocabulary(hidden[-1], inputs.targets, quantities, reference, chunk)
        if activations is not None:
            out["activation_mask"] = activation_mask(activations, self._logit_means(hidden[-1], chunk), inputs)
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
        with attending(self.config, inputs.attention, self.device) as confined:
            return self.causal.get_decoder()(
                input_ids=inputs.input_ids.to(self.device),
                position_ids=inputs.position_ids.to(self.device),
                use_cache=False,
                **confined,
                **more,
            )

    def logits(self, hidden: Tensor) -> Tensor:
        """[...,V] float32 logits of final hidden states, at the temperature and with the configuration's scalings.

        The head's weights must be there: under ZeRO-3 inside the window.
        """
        config, head = self.config.get_text_config(), self.causal.get_output_embeddings()
        logits = linear(hidden, head.weight, head.bias).float()
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
        ids = inputs.input_ids.to(self.device)
        own = self.causal(input_ids=ids, use_cache=False).logits.float() / self.temperature
        states = self.causal.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        return (self.window(states, run=self.logits) - own).abs().max()

    def _logit_means(self, hidden: Tensor, chunk: int) -> Tensor:
        """[R,N] mean of the logits over the vocabulary, in chunks."""

        def means(hidden: Tensor) -> Tensor:
            return torch.cat([self.logits(part).mean(-1) for part in hidden.split(chunk)])

        return self.window(hidden.flatten(0, 1), run=means).view(hidden.shape[:2])

    def _vocabulary(
        self, hidden: Tensor, targets: Tensor, quantities: Sequence[str], reference: Reference | None, chunk: int
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

        trained = any(p.requires_grad for p in self.causal.get_output_embeddings().parameters())
        if torch.is_grad_enabled() and not trained:
            with torch.no_grad():  # the backward pass needs no weights then, and must not gather them
                found = self.window(*whole, run=_in_chunks(_with_slopes(read), chunk))
            found = _Sloped.apply(whole[0], *found)
        else:
            run = _recomputed(read) if torch.is_grad_enabled() else read
            found = self.window(*whole, run=_in_chunks(run, chunk))
        return {name: values.view(shape) for name, values in zip(wanted, found, strict=True)}


def read_tokens(module: nn.Module, layout: Layout, batch: Batch, wanted_BT: Tensor) -> Tensor:
    """[B,T] log-probabilities in nats of the tokens marked, over the whole vocabulary, 0 elsewhere, in one pass.

    `module` is a `Policy`, or the engine around one.
    """
    inputs = layout.inputs(batch, wanted_BT)
    return inputs.scatter(module(inputs, ("whole_logprob",))["whole_logprob"], wanted_BT.shape)


Read = Callable[..., tuple[Tensor, ...]]  # tensors of K positions -> tensors of K positions


def _in_chunks(read: Read, chunk: int) -> Read:
    """The same, `chunk` positions at a time."""

    def run(*whole: Tensor) -> tuple[Tensor, ...]:
        parts = zip(*(tensor.split(chunk) for tensor in whole), strict=True)
        return tuple(map(torch.cat, zip(*(read(*part) for part in parts), strict=True)))

    return run


def _recomputed(read: Read) -> Read:
    """The same, computed again in the backward pass: nothing inside is kept for it."""
    return lambda *part: checkpoint(read, *part, use_reentrant=False)


def _with_slopes(read: Read) -> Read:
    """(the values, each [K], and the slope of each along the hidden states, each [K,D]): found while the logits are
    there. Each value depends on one hidden state and on nothing else that is trained."""

    def run(hidden: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            values = read(hidden, *rest)
            slopes = [torch.autograd.grad(value.sum(), hidden, retain_graph=True)[0] for value in values]
        return *(value.detach() for value in values), *slopes

    return run


class _Sloped(torch.autograd.Function):
    """Gives values that are known with their slopes; the backward pass only scales these."""

    @staticmethod
    def forward(ctx, hidden: Tensor, *found: Tensor) -> tuple[Tensor, ...]:
        count = len(found) // 2
        ctx.save_for_backward(*found[count:])
        return tuple(value.clone() for value in found[:count])

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(gradients, ctx.saved_tensors, strict=True)
        hidden = sum(gradient[:, None].to(slope.dtype) * slope for gradient, slope in pairs)
        return hidden, *[None] * (len(ctx.needs_input_grad) - 1)


def _attention_cost(causal: nn.Module) -> float:
    """About the cost of one pair of positions in attention, over all layers, as a fraction of the cost of one token in
    all weights: for even micro-batches. Of a mixture every expert counts."""
    text = causal.config.get_text_config()
    counts = {id(p): count(p) for p in causal.get_decoder().parameters()}
    for p in causal.get_input_embeddings().parameters():
        counts.pop(id(p), None)  # a look-up
    return 2 * text.num_hidden_layers * text.hidden_size / sum(counts.values())
