"""Engines that sample responses. vLLM is imported in this file only."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from transformers import GenerationConfig

from align import weights
from align.recipe import Recipe


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    ids: list[int]  # its end token included, where it has one
    logprobs: list[float]  # nats, at the temperature it was sampled with
    truncated: bool  # stopped by the token limit


@dataclass(frozen=True)
class Probe:
    """What a sampler says about a few tokens, in nats."""

    prompt: list[float]  # of each prompt token but the first, at temperature 1
    following: dict[int, float]  # {token: ...} of the likeliest next tokens and the one sampled, as it samples


LIKELIEST = 65  # next tokens of a probe: a support that is cut to 64 or fewer shows


class Generator(Protocol):
    """An engine on this rank. `sync` is collective; `generate` and `probe` are not."""

    def generate(
        self, prompts: Sequence[Sequence[int]], *, n: int, temperature: float, max_tokens: int, seed: int
    ) -> list[list[Response]]:
        """n responses for each prompt; temperature 0 is greedy. The same seed gives the same responses."""
        ...

    def sync(self, model: nn.Module) -> None:
        """Make the next `generate` sample from the model's weights of now."""
        ...

    def probe(self, ids: Sequence[int], *, temperature: float) -> Probe:
        """What it says about a prompt and about the next token, sampled just as `generate` does."""
        ...

    def close(self) -> None:
        """Let go of memory and process groups; before the trainer ends its own."""
        ...


class VLLM:
    """An in-process vLLM engine, one a rank.

    `merged` reloads whole weights in place, `adapter` hands over the LoRA tensors under a new version: vLLM
    keys its caches by name and path.
    """

    def __init__(self, path: str, recipe: Recipe, context: int):
        threads, sync = torch.get_num_threads(), recipe.sampling.sync
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, so that the torch seed decides
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest

        self._params, self._lora_request = SamplingParams, LoRARequest
        self._adapter_folder = Path(tempfile.mkdtemp(prefix="align-adapter-")) if sync == "adapter" else None
        self._lora, self._version = None, 0
        # a prompt is shared by its whole blocks; on CPU they are of 128 tokens where nothing is said
        blocks = {} if torch.cuda.is_available() else {"block_size": 32}
        lora = dict(enable_lora=True, max_lora_rank=_lora_rank(recipe.model.adapter.rank)) if sync == "adapter" else {}
        self._llm = LLM(
            model=path,
            dtype=recipe.model.dtype,
            load_format="safetensors",
            trust_remote_code=False,
            distributed_executor_backend="external_launcher",
            max_model_len=context,
            max_num_seqs=recipe.sampling.max_sequences,
            gpu_memory_utilization=0.05,  # only asked for at the start; the next line sizes the cache
            kv_cache_memory_bytes=int(recipe.sampling.cache_gib * 2**30),
            enable_prefix_caching=True,
            enforce_eager=not recipe.sampling.compile,
            logprobs_mode="processed_logprobs",
            max_logprobs=LIKELIEST,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            seed=recipe.run.seed,
            **blocks,
            **lora,
        )
        if torch.get_num_threads() != threads:
            raise RuntimeError(f"vLLM left torch with {torch.get_num_threads()} threads instead of {threads}")

    def generate(self, prompts, *, n, temperature, max_tokens, seed):
        if not prompts:
            return []
        torch.manual_seed(seed)  # a seed for each request would end the CPU engine
        self._llm.reset_prefix_cache()  # what was sampled before must not decide how the prompts are computed
        outputs = self._sample(prompts, n=n, temperature=temperature, max_tokens=max_tokens, logprobs=0)
        return [[_response(sample) for sample in output.outputs] for output in outputs]

    def _sample(self, prompts, **settings):
        """The engine's outputs; whatever is sampled is sampled here."""
        params = self._params(**settings, detokenize=False)
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        return self._llm.generate(requests, params, use_tqdm=False, lora_request=self._lora)

    def probe(self, ids, *, temperature):
        settings = dict(temperature=temperature, max_tokens=1, logprobs=LIKELIEST, prompt_logprobs=0)
        [output] = self._sample([ids], **settings)
        prompt = [position[token].logprob for token, position in zip(ids[1:], output.prompt_logprobs[1:], strict=True)]
        [following] = output.outputs[0].logprobs
        return Probe(prompt, {token: found.logprob for token, found in following.items()})

    def sync(self, model):
        self._version += 1
        if self._adapter_folder is None:
            arguments = {"weights_iterator": weights.merged(model)}
            self._llm.collective_rpc("reload_weights", kwargs=arguments)
        else:
            folder = self._adapter_folder / f"v{self._version}"
            weights.save(model, folder, write=True)
            self._lora = self._lora_request(f"policy-v{self._version}", self._version, str(folder))
            shutil.rmtree(self._adapter_folder / f"v{self._version - 1}", ignore_errors=True)

    def close(self):
        self._llm.llm_engine.engine_core.shutdown()
        if self._adapter_folder is not None:
            shutil.rmtree(self._adapter_folder)


def _lora_rank(rank: int) -> int:
    """vLLM knows only these sizes; a smaller adapter fits in the next one."""
    sizes = [1, 8, 16, 32, 64, 128, 256, 320, 512]
    return next(size for size in sizes if size >= rank)


def _response(sample) -> Response:
    logprobs = [position[token].logprob for token, position in zip(sample.token_ids, sample.logprobs, strict=True)]
    return Response(list(sample.token_ids), logprobs, sample.finish_reason == "length")


class Transformers:
    """Samples with transformers' `generate` from the trainer's own module: slow, for platforms without vLLM."""

    def __init__(self, model: nn.Module, end_ids: Sequence[int], pad_id: int):
        self._model, self._end_ids, self._pad_id = model, list(end_ids), pad_id
        # the model's own settings (top_k, repetition_penalty, ...) would sample from another distribution
        self._plain = GenerationConfig(eos_token_id=list(end_ids), pad_token_id=pad_id, top_k=0)

    @torch.no_grad()
    def generate(self, prompts, *, n, temperature, max_tokens, seed):
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
        """The model's output; whatever is sampled is sampled here. Its scores are what it samples from."""
        ids = torch.tensor([[self._pad_id] * (width - len(p)) + list(p) for p in prompts], device=self._model.device)
        seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._model.device)
        choice = (
            dict(do_sample=True, temperature=temperature, num_return_sequences=n)
            if temperature
            else dict(do_sample=False)
        )
        own, self._model.generation_config = self._model.generation_config, self._plain
        try:
            return self._model.generate(
                input_ids=ids,
                attention_mask=seen,
                max_new_tokens=max_tokens,
                return_dict_in_generate=True,
                output_scores=True,
                **choice,
            )
        finally:
            self._model.generation_config = own

    @torch.no_grad()
    def probe(self, ids, *, temperature):
        tokens = torch.tensor([list(ids)], device=self._model.device)
        before = self._model(tokens[:, :-1]).logits.float().log_softmax(-1)
        out = self._sample([ids], len(ids), n=1, temperature=temperature, max_tokens=1)
        following = out.scores[0][0].float().log_softmax(-1)
        likeliest = {*following.topk(min(LIKELIEST, len(following))).indices.tolist(), int(out.sequences[0, -1])}
        prompt = before.gather(-1, tokens[:, 1:, None])[0, :, 0].tolist()
        return Probe(prompt, {token: float(following[token]) for token in likeliest})

    def _cut(self, tokens: list[int], logprobs: list[float]) -> Response:
        """Up to the first end token, by position: the pad token may be the end token."""
        end = next((i for i, token in enumerate(tokens) if token in self._end_ids), None)
        length = len(tokens) if end is None else end + 1
        return Response(tokens[:length], logprobs[:length], truncated=end is None)

    def sync(self, model):
        """Nothing to ship: it samples from the trainer's weights."""

    def close(self):
        """Nothing of its own."""
