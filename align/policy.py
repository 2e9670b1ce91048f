"""The module that DeepSpeed wraps: token log-probabilities and entropies of a causal language model."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PretrainedConfig

from align.layouts import Inputs


class Policy(nn.Module):
    """A causal language model read at one temperature, the one that the sampler uses."""

    def __init__(self, model: nn.Module, temperature: float):
        super().__init__()
        self.model = model
        self.temperature = temperature

    @property
    def config(self) -> PretrainedConfig:
        """The model's; accelerate and TRL size ZeRO's buckets by it."""
        return self.model.config

    def forward(self, inputs: Inputs, quantities: tuple[str, ...] = ("logprob",)) -> dict[str, Tensor]:
        """{quantity: [R,N] nats} for `logprob` and `entropy`. Softmax and sums run in float32."""
        device = self.model.device
        logits = self.model(
            input_ids=inputs.input_ids.to(device),
            attention_mask=inputs.attention_mask.to(device),
            position_ids=inputs.position_ids.to(device),
            logits_to_keep=inputs.predict_at.to(device),
            use_cache=False,
        ).logits
        logits = logits.float() / self.temperature
        log_total = logits.logsumexp(-1)
        chosen = logits.gather(-1, inputs.targets.to(device)[..., None])[..., 0]
        out = {"logprob": chosen - log_total}
        if "entropy" in quantities:
            out["entropy"] = log_total - (logits.softmax(-1) * logits).sum(-1)
        return out
