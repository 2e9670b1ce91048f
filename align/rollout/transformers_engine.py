"""Sample with transformers' `generate`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import GenerationConfig

from align.data.prompts import Response
from align.rollout.generator import LIKELIEST, SamplerLogprobs


class Transformers:
    """A `Generator` that samples from the trainer's own module: slow, for platforms without vLLM."""

    def __init__(self, model: nn.Module, end_ids: Sequence[int], pad_id: int):
        self._model, self._end_ids, self._pad_id = model, list(end_ids), pad_id
        # the model's own settings (top_k, repetition_penalty, ...) would sample from another distribution
        self._plain = GenerationConfig(eos_token_id=list(end_ids), pad_token_id=pad_id, top_k=0)

    @torch.no_grad()
    def generate(self, prompts, *, n, temperature, max_tokens, seed):
        """Sample as `Generator.generate` says."""
        if not prompts:
            return []
        torch.manual_seed(seed)
        width = max(map(len, prompts))
        out = self._sample(prompts, width, n=n, temperature=temperature, max_tokens=max_tokens)
        tokens = out.sequences[:, width:]
        logprobs = torch.stack(out.scores, 1).float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        rows = [self._cut(t, lp) for t, lp in zip(tokens.tolist(), logprobs.tolist(), strict=True)]
        per = n if temperature else 1
        return [rows[i : i + per] * (n // per) for i in range(0, len(rows), per)]

    def _sample(self, prompts, width, *, n, temperature, max_tokens):
        """The model's output, whose scores are the logits that it samples from; everything is sampled here."""
        ids = torch.tensor([[self._pad_id] * (width - len(p)) + list(p) for p in prompts], device=self._model.device)
        attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._model.device)
        choice = (
            dict(do_sample=True, temperature=temperature, num_return_sequences=n)
            if temperature
            else dict(do_sample=False)
        )
        own, self._model.generation_config = self._model.generation_config, self._plain
        try:
            return self._model.generate(
                input_ids=ids,
                attention_mask=attention,
                max_new_tokens=max_tokens,
                return_dict_in_generate=True,
                output_scores=True,
                **choice,
            )
        finally:
            self._model.generation_config = own

    @torch.no_grad()
    def logprobs(self, ids, *, temperature):
        """Log-probabilities as `Generator.logprobs` says."""
        tokens = torch.tensor([list(ids)], device=self._model.device)
        before = self._model(tokens[:, :-1]).logits.float().log_softmax(-1)
        out = self._sample([ids], len(ids), n=1, temperature=temperature, max_tokens=1)
        following = out.scores[0][0].float().log_softmax(-1)
        likeliest = {*following.topk(min(LIKELIEST, len(following))).indices.tolist(), int(out.sequences[0, -1])}
        prompt = before.gather(-1, tokens[:, 1:, None])[0, :, 0].tolist()
        return SamplerLogprobs(prompt, {token: float(following[token]) for token in likeliest})

    def _cut(self, tokens: list[int], logprobs: list[float]) -> Response:
        """Cut a response behind its first end token: by position, since the pad token may be the end token."""
        end = next((i for i, token in enumerate(tokens) if token in self._end_ids), None)
        length = len(tokens) if end is None else end + 1
        return Response(tokens[:length], logprobs[:length], truncated=end is None)

    def sync(self, model):
        """Do nothing: it samples from the trainer's weights."""

    def close(self):
        """Do nothing: it has no memory of its own."""
