"""Sample with transformers' `generate`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList

from align.config.sampling_keys import Sampling
from align.data.prompts import Response
from align.model.cut import Cut
from align.rollout.generator import LIKELIEST, SamplerLogprobs, answer_of
from align.rollout.seeds import PROBE


class Transformers:
    """A `Generator` that samples from the trainer's own module: slow, for platforms without vLLM.

    `sampling` gives the support and the texts that end a response, for which a tokenizer is needed.
    """

    def __init__(
        self,
        model: nn.Module,
        end_ids: Sequence[int],
        pad_id: int,
        sampling: Sampling | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        self._model, self._end_ids, self._pad_id = model, list(end_ids), pad_id
        sampling = sampling or Sampling()
        self._support, self._stop, self._tokenizer = Cut.of(sampling), sampling.stop, tokenizer
        self.settings = {}
        self._plain = self._neutral()  # the model's own settings (top_k, ...) would sample from another distribution

    def _neutral(self) -> GenerationConfig:
        """Settings that leave the distribution as it is."""
        return GenerationConfig(eos_token_id=self._end_ids, pad_token_id=self._pad_id, top_k=0)

    def forget(self):
        """Do nothing: it keeps nothing of a prompt."""

    @torch.no_grad()
    def generate(self, prompts, *, n, temperature, max_tokens, seeds):
        """Sample as `Generator.generate` says."""
        if not prompts:
            return []
        torch.manual_seed(seeds.stream)
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

        def support(_: Tensor, scores: Tensor) -> Tensor:
            """The scores, which are logits at temperature 1 still, -inf outside of the support."""
            return scores.masked_fill(~self._support.inside(scores.float() / temperature), -math.inf)

        def stopped(ids: Tensor, *_, **__) -> Tensor:
            """[R] bool: rows that hold a text that ends a response."""
            done = [self._stop_at(row) is not None for row in ids[:, width:].tolist()]
            return torch.tensor(done, device=ids.device)

        own, self._model.generation_config = self._model.generation_config, self._plain
        try:
            out = self._model.generate(
                input_ids=ids,
                attention_mask=attention,
                max_new_tokens=max_tokens,
                return_dict_in_generate=True,
                output_scores=True,
                logits_processor=LogitsProcessorList([support] if self._support.cuts and temperature else []),
                stopping_criteria=StoppingCriteriaList([stopped] if self._stop else []),
                **choice,
            )
        finally:
            self._model.generation_config = own
        self.settings = self._settings(temperature, max_tokens)
        return out

    def _settings(self, temperature: float, max_tokens: int) -> dict:
        """The settings of a call, as `generator.asked` has them."""
        neutral, used = self._neutral().to_dict(), self._plain.to_dict()
        names = [name for name in used if not name.startswith("_") and name != "transformers_version"]
        found = {name: used[name] for name in names if used[name] != neutral.get(name)}
        support = {name: value for name, value in vars(self._support).items() if value != getattr(Cut, name)}
        shaping = (support if temperature else {}) | ({"stop": self._stop} if self._stop else {})
        return {**found, **shaping, "temperature": temperature, "max_tokens": max_tokens}

    @torch.no_grad()
    def logprobs(self, ids, *, temperature):
        """Log-probabilities as `Generator.logprobs` says."""
        [prompt] = self.score([ids])
        torch.manual_seed(PROBE)  # the token sampled is compared too, also where a resumed run sampled nothing else
        out = self._sample([ids], len(ids), n=1, temperature=temperature, max_tokens=1)
        following = out.scores[0][0].float().log_softmax(-1)
        likeliest = {*following.topk(min(LIKELIEST, len(following))).indices.tolist(), int(out.sequences[0, -1])}
        return SamplerLogprobs(prompt, {token: float(following[token]) for token in likeliest})

    @torch.no_grad()
    def score(self, rows):
        """Log-probabilities as `Generator.score` says, a row at a time."""
        out = []
        for ids in rows:
            tokens = torch.tensor([list(ids)], device=self._model.device)
            before = self._model(tokens[:, :-1]).logits.float().log_softmax(-1)
            out.append(before.gather(-1, tokens[:, 1:, None])[0, :, 0].tolist())
        return out

    def _cut(self, tokens: list[int], logprobs: list[float]) -> Response:
        """Cut a response behind its first end token or text: by position, since the pad token may be the end token."""
        end = next((i for i, token in enumerate(tokens) if token in self._end_ids), None)
        length = len(tokens) if end is None else end + 1
        stop = self._stop_at(tokens[:length])
        return Response(tokens[: stop or length], logprobs[: stop or length], truncated=end is None and stop is None)

    def _stop_at(self, tokens: list[int]) -> int | None:
        """Number of tokens up to the one that completes a text that ends a response; None where none does."""
        if not self._stop or not self._has_stop(tokens):
            return None
        return next(length for length in range(1, len(tokens) + 1) if self._has_stop(tokens[:length]))

    def _has_stop(self, tokens: list[int]) -> bool:
        text = self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(stop in text for stop in self._stop)

    def sync(self, model):
        """Do nothing: it samples from the trainer's weights."""

    def sleep(self):
        """Do nothing: it has no memory of its own."""

    def vocabulary(self):
        """No rows: the tables are the trainer's."""
        return {}

    def answers(self, ids, *, temperature):
        """What it says of a few tokens, as `Generator.answers` says."""
        return {"": answer_of(self, ids, temperature)}

    def close(self):
        """Do nothing: it has no memory of its own."""
