"""The module that DeepSpeed wraps: what a causal language model and the heads beside it say about tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from align.activations import activation_mask, recorded
from align.heads import Head
from align.layouts import Inputs

CHUNK = 1024  # positions whose logits exist at once


@dataclass(frozen=True)
class Reference:
    """What the reference says at the positions that predict: hidden states, and how they become logits."""

    hidden: list[Tensor]  # [R,N,D] of each layer, or of the last alone where no head reads the others
    logits: Callable[[Tensor], Tensor]  # [K,D] -> [K,V]


class Policy(nn.Module):
    """A causal language model read at one temperature, the one that the sampler uses, with heads beside it."""

    def __init__(self, model: nn.Module, temperature: float, heads: Sequence[Head] = ()):
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.specs = {head.name: head for head in heads}
        self.heads = nn.ModuleDict({head.name: head.build(model.config) for head in heads})

    @property
    def config(self) -> PretrainedConfig:
        """The model's; accelerate and TRL size ZeRO's buckets by it."""
        return self.model.config

    @property
    def causal(self) -> nn.Module:
        """The transformers model, its adapters inside its layers."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def asks_reference(self, quantities: Sequence[str]) -> str | None:
        """What these need of the reference: `layers`, `hidden` or nothing."""
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
        """{quantity: [R,N]}: logprob, entropy and ref_kl in nats, and what the heads give. Sums run in float32.

        `layers` gives a list of [R,N,D] instead, one a layer without the embeddings, and `hidden` one with the last
        alone. `activation_mask` is MaPO's. `head_gap` checks that logits are made as the model makes them. The head
        runs `chunks` times: under ZeRO-3 each run is collective, so that all ranks need the same number.
        """
        if "activation_mask" in quantities:
            with recorded(self.causal) as activations:
                hidden = self._hidden(inputs)
            means = self._logit_means(hidden[-1], chunks)
            return {"activation_mask": activation_mask(activations, means, inputs)}
        if "head_gap" in quantities:
            return {"head_gap": self._head_gap(inputs)}
        if "layers" in quantities:
            return {"layers": self._layers(inputs)}
        hidden = self._hidden(inputs)
        if "hidden" in quantities:
            return {"hidden": hidden}
        out = self._vocabulary(hidden[-1], inputs.targets, quantities, reference, chunks)
        for name, head in self.heads.items():
            if set(self.specs[name].gives) & set(quantities):
                out |= head(hidden if self.specs[name].reads == "policy" else reference.hidden)
        return {name: out[name] for name in quantities}

    def _hidden(self, inputs: Inputs) -> list[Tensor]:
        """One [R,N,D]: behind the final norm, at the positions that predict."""
        states = self._decode(inputs).last_hidden_state
        return [states[:, inputs.predict_at.to(states.device)]]

    def _layers(self, inputs: Inputs) -> list[Tensor]:
        """[R,N,D] of each layer at the positions that predict; the last one is behind the final norm."""
        states = self._decode(inputs, output_hidden_states=True).hidden_states
        return [layer[:, inputs.predict_at.to(layer.device)] for layer in states[1:]]

    def _decode(self, inputs: Inputs, **more):
        device = self.model.device
        return self.causal.get_decoder()(
            input_ids=inputs.input_ids.to(device),
            attention_mask=inputs.attention_mask.to(device),
            position_ids=inputs.position_ids.to(device),
            use_cache=False,
            **more,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """[...,V] float32 of final hidden states, at the temperature; with the scalings that configurations know."""
        config = self.config.get_text_config()
        logits = self.causal.get_output_embeddings()(hidden).float()
        if getattr(config, "logits_scaling", None):
            logits = logits / config.logits_scaling
        if getattr(config, "logit_scale", None):
            logits = logits * config.logit_scale
        cap = getattr(config, "final_logit_softcapping", None)
        if cap:
            logits = cap * torch.tanh(logits / cap)
        return logits / self.temperature

    def _head_gap(self, inputs: Inputs) -> Tensor:
        """[] largest difference between `logits` and what the model itself makes of its last hidden states."""
        ids = inputs.input_ids.to(self.model.device)
        own = self.causal(input_ids=ids, use_cache=False).logits.float() / self.temperature
        states = self.causal.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        return (self.logits(states) - own).abs().max()

    def _logit_means(self, hidden: Tensor, chunks: int) -> Tensor:
        """[R,N] mean over the vocabulary of the logits, in chunks."""
        parts = hidden.flatten(0, 1).tensor_split(chunks)
        return torch.cat([self.logits(part).mean(-1) for part in parts]).view(hidden.shape[:2])

    def _vocabulary(
        self, hidden: Tensor, targets: Tensor, quantities: Sequence[str], reference: Reference | None, chunks: int
    ) -> dict[str, Tensor]:
        """What needs the whole vocabulary, in chunks whose logits are computed again for the backward pass: they
        never exist for all tokens at once."""
        shape, wanted = hidden.shape[:2], [q for q in ("logprob", "entropy", "ref_kl") if q in quantities]
        if not wanted:
            return {}
        whole = [hidden.flatten(0, 1), targets.to(hidden.device).flatten()]
        if "ref_kl" in wanted:
            whole.append(reference.hidden[-1].flatten(0, 1))
        parts = list(zip(*(tensor.tensor_split(chunks) for tensor in whole), strict=True))

        def read(hidden: Tensor, targets: Tensor, ref_hidden: Tensor | None = None) -> tuple[Tensor, ...]:
            logits = self.logits(hidden)
            log_total = logits.logsumexp(-1)
            values = {"logprob": logits.gather(-1, targets[:, None])[:, 0] - log_total}
            if "entropy" in wanted:
                values["entropy"] = log_total - (logits.softmax(-1) * logits).sum(-1)
            if "ref_kl" in wanted:
                with torch.no_grad():
                    ref = reference.logits(ref_hidden).log_softmax(-1)
                values["ref_kl"] = (ref.exp() * (ref - logits)).sum(-1) + log_total
            return tuple(values[name] for name in wanted)

        if chunks == 1 or not torch.is_grad_enabled():
            found = [read(*part) for part in parts]
        else:
            found = [checkpoint(read, *part, use_reentrant=False) for part in parts]
        return {name: torch.cat([values[i] for values in found]).view(shape) for i, name in enumerate(wanted)}
