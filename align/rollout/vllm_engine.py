"""Sample with vLLM, which is imported only here, and only when an engine starts."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn

from align.config.recipe import Recipe
from align.data.prompts import Response
from align.learner import weights
from align.rollout.generator import LIKELIEST, SamplerLogprobs

# settings of a request that do not decide which tokens are sampled; the others must be as the recipe asks, or neutral
REPORTING = {"n", "logprobs", "prompt_logprobs", "flat_logprobs", "output_kind", "skip_clone", "detokenize"}

REPORTING |= {"skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output"}

REPORTING |= {"output_text_buffer_length"}


class VLLM:
    """A `Generator` that runs vLLM in this process, one a rank.

    With `sampling.sync: merged` whole weights are reloaded in place; with `adapter` the LoRA tensors are handed over
    under a new version, since vLLM keys its caches by name and path. `context` is the most tokens of prompt and
    response together.
    """

    def __init__(self, path: str, recipe: Recipe, context: int):
        threads, sampling = torch.get_num_threads(), recipe.sampling
        sync = sampling.sync
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, so that the torch seed decides
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vLLM is imported
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest

        self._params, self._lora_request = SamplingParams, LoRARequest
        self._shaping = dict(top_p=sampling.top_p, top_k=sampling.top_k, min_p=sampling.min_p, stop=sampling.stop)
        self.settings = {}
        self._adapter_folder = Path(tempfile.mkdtemp(prefix="align-adapter-")) if sync == "adapter" else None
        self._lora, self._version = None, 0
        # prompts are shared by whole blocks, which by default have 128 tokens on a CPU
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
            gpu_memory_utilization=0.05,  # only checked at the start; the next line sizes the cache
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
        """Sample as `Generator.generate` says."""
        if not prompts:
            return []
        torch.manual_seed(seed)  # a seed for each request would end the CPU engine
        self._llm.reset_prefix_cache()  # what was sampled before must not decide how the prompts are computed
        outputs = self._sample(prompts, n=n, temperature=temperature, max_tokens=max_tokens, logprobs=0)
        return [[_response(sample) for sample in output.outputs] for output in outputs]

    def _sample(self, prompts, **settings):
        """The engine's outputs; everything is sampled here. Texts that end a response may have special tokens."""
        text = dict(detokenize=bool(self._shaping["stop"]), skip_special_tokens=False)
        params = self._params(**{**self._shaping, **text, **settings})
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(requests, params, use_tqdm=False, lora_request=self._lora)
        self.settings = self._settings(params)
        return outputs

    def _settings(self, params) -> dict:
        """The settings of a request, as `generator.asked` has them: those that a neutral one with its reports lacks."""
        neutral = type(params)(**{name: getattr(params, name) for name in REPORTING})
        always = ("temperature", "max_tokens")
        names = [name for name in params.__struct_fields__ if not name.startswith("_") and name not in REPORTING]
        found = {name: getattr(params, name) for name in names}
        return {name: value for name, value in found.items() if name in always or value != getattr(neutral, name)}

    def logprobs(self, ids, *, temperature):
        """Log-probabilities as `Generator.logprobs` says."""
        settings = dict(temperature=temperature, max_tokens=1, logprobs=LIKELIEST, prompt_logprobs=0)
        [output] = self._sample([ids], **settings)
        prompt = _of_prompt(ids, output)
        [following] = output.outputs[0].logprobs
        return SamplerLogprobs(prompt, {token: found.logprob for token, found in following.items()})

    def score(self, rows):
        """Log-probabilities as `Generator.score` says."""
        settings = dict(temperature=1.0, max_tokens=1, prompt_logprobs=0)
        # with LoRA its CPU kernels take the logits of several prompts for those of as many tokens, and raise
        parts = [rows] if self._adapter_folder is None else [[ids] for ids in rows]
        outputs = [output for part in parts for output in self._sample(part, **settings)]
        return [_of_prompt(ids, output) for ids, output in zip(rows, outputs, strict=True)]

    def sync(self, model):
        """Hand over the weights, merged or as an adapter. Collective."""
        self._version += 1
        if self._adapter_folder is None:
            arguments = {"weights_iterator": weights.merged(model)}
            self._llm.collective_rpc("reload_weights", kwargs=arguments)
        else:
            folder = self._adapter_folder / f"v{self._version}"
            weights.save(model, folder, write=True)
            self._lora = self._lora_request(f"policy-v{self._version}", self._version, str(folder))
            shutil.rmtree(self._adapter_folder / f"v{self._version - 1}", ignore_errors=True)

    def vocabulary(self):
        """The rows of the tables as `Generator.vocabulary` says; the head's by a product, for it may have a copy."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

        @torch.inference_mode()
        def read(model: nn.Module) -> dict[str, torch.Tensor]:
            tables = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
            embedding = next(table for table in tables if not isinstance(table, ParallelLMHead))
            head = next((table for table in tables if isinstance(table, ParallelLMHead)), embedding)
            along = [weights.directions(table.weight.shape[1]).to(table.weight) for table in (embedding, head)]
            rows = embedding.weight @ along[0], head.quant_method.apply(head, along[1].T.contiguous()).T
            return {name: found.float().cpu() for name, found in zip(("embedding", "head"), rows, strict=True)}

        [found] = self._llm.apply_model(read)
        return found

    def close(self):
        """Shut the engine down and remove the adapter's files."""
        self._llm.llm_engine.engine_core.shutdown()
        if self._adapter_folder is not None:
            shutil.rmtree(self._adapter_folder)


def _lora_rank(rank: int) -> int:
    """The next size that vLLM knows; a smaller adapter fits in it."""
    sizes = [1, 8, 16, 32, 64, 128, 256, 320, 512]
    return next(size for size in sizes if size >= rank)


def _response(sample) -> Response:
    logprobs = [position[token].logprob for token, position in zip(sample.token_ids, sample.logprobs, strict=True)]
    return Response(list(sample.token_ids), logprobs, sample.finish_reason == "length")


def _of_prompt(ids, output) -> list[float]:
    """The log-probability of each token of a prompt but the first."""
    return [position[token].logprob for token, position in zip(ids[1:], output.prompt_logprobs[1:], strict=True)]
