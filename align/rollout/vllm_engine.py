"""Sample with vLLM, which is imported only here, and only when an engine starts."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from align.config.recipe import Recipe
from align.data.prompts import Response
from align.learner import weights
from align.rollout import shared_memory, tables
from align.rollout.engine_arguments import engine_arguments, request_seeds, request_settings
from align.rollout.generator import LIKELIEST, SamplerLogprobs, answer_of
from align.rollout.heads import leave_head
from align.rollout.mixtures import pack_experts
from align.rollout.seeds import PROBE, Seeds
from align.system.hardware import Hardware

# settings of a request that do not decide which tokens are sampled; the others must be as the recipe asks, or neutral
REPORTING = {"n", "logprobs", "prompt_logprobs", "flat_logprobs", "output_kind", "skip_clone", "detokenize"}

REPORTING |= {"skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output"}

REPORTING |= {"output_text_buffer_length", "seed"}


class VLLM:
    """A `Generator` that runs vLLM in this process: one engine a rank, or one for `sampling.tensor_parallel` ranks.

    With `sampling.sync: merged` whole weights are reloaded in place; with `adapter` the LoRA tensors are handed over
    under a new version, since vLLM keys its caches by name and path. `context` is the most tokens of prompt and
    response together, `cache` the bytes of its key-value cache.
    """

    def __init__(self, path: str, recipe: Recipe, context: int, hardware: Hardware, cache: int):
        self._sampling, self._hardware = recipe.sampling, hardware
        self.settings, self._asleep = {}, False
        merged = self._sampling.sync == "merged"
        self._adapter_folder = None if merged else Path(tempfile.mkdtemp(prefix="align-adapter-"))
        self._lora, self._version = None, 0
        arguments = engine_arguments(path, recipe, context, hardware, cache)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, so that its seeds decide
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vLLM is imported
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest

        self._params, self._lora_request = SamplingParams, LoRARequest
        if self._sampling.tensor_parallel > 1 and not hardware.is_gpu:
            shared_memory.clear(self._sampling.tensor_parallel)
        with _own_threads():
            self._llm = LLM(**arguments)
        if self._adapter_folder is not None and not hardware.is_gpu:
            self._llm.apply_model(leave_head)

    def forget(self):
        """Empty the cache, as `Generator.forget` says."""
        self._llm.reset_prefix_cache()

    def generate(self, prompts, *, n, temperature, max_tokens, seeds):
        """Sample as `Generator.generate` says."""
        if not prompts:
            return []
        outputs = self._sample(prompts, seeds, n=n, temperature=temperature, max_tokens=max_tokens, logprobs=0)
        return [[_response(sample) for sample in output.outputs] for output in outputs]

    def _sample(self, prompts, seeds: Seeds, **settings):
        """The engine's outputs; everything is sampled here."""
        torch.manual_seed(seeds.stream)
        asked = request_settings(self._sampling, **settings)
        params = [self._params(**asked, seed=seed) for seed in request_seeds(seeds, self._hardware)]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(requests, params, use_tqdm=False, lora_request=self._lora)
        self.settings = self._settings(params[0])
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
        settings = dict(n=1, temperature=temperature, max_tokens=1, logprobs=LIKELIEST, prompt_logprobs=0)
        [output] = self._sample([ids], Seeds(PROBE, [PROBE]), **settings)
        prompt = _of_prompt(ids, output)
        [following] = output.outputs[0].logprobs
        return SamplerLogprobs(prompt, {token: found.logprob for token, found in following.items()})

    def score(self, rows):
        """Log-probabilities as `Generator.score` says."""
        settings = dict(n=1, temperature=1.0, max_tokens=1, prompt_logprobs=0)
        outputs = self._sample(rows, Seeds(PROBE, [PROBE] * len(rows)), **settings)
        return [_of_prompt(ids, output) for ids, output in zip(rows, outputs, strict=True)]

    def take_base(self, model):
        """Take the trainer's base, which is quantised, instead of the one that was loaded. Collective."""
        self._reload(weights.base(model))

    def sync(self, model):
        """Hand over the weights, merged or as an adapter, and wake up. Collective.

        The cache is the last to wake: while whole weights are handed over, its memory is free for them.
        """
        self._version += 1
        if self._adapter_folder is None:
            if self._asleep:
                self._llm.wake_up(tags=["weights"])
            self._reload(weights.merged(model))
        else:
            folder = self._adapter_folder / f"v{self._version}"
            weights.save(model, folder, write=True)
            self._lora = self._lora_request(f"policy-v{self._version}", self._version, str(folder))
            shutil.rmtree(self._adapter_folder / f"v{self._version - 1}", ignore_errors=True)
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False

    def sleep(self):
        """Sleep as `Generator.sleep` says: without its cache, and without weights where the next sync brings them all.

        An adapter's base stays where it is. Whatever else the engine holds, such as CUDA graphs, goes to the machine's
        memory and comes back with the weights.
        """
        if not self._sampling.sleep or self._asleep:
            return
        if self._adapter_folder is None:
            self._llm.sleep(level=2)
        else:
            self._llm.sleep(level=0)  # it takes no requests
            self._llm.release_kv_cache_memory()
        self._asleep = True

    def _reload(self, found: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Take these weights in place of those that are loaded."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": found})
        if not self._hardware.is_gpu:
            self._llm.apply_model(pack_experts)

    def vocabulary(self):
        """The rows of the tables as `Generator.vocabulary` says."""
        [found] = self._llm.apply_model(tables.read)
        return found

    def answers(self, ids, *, temperature):
        """What it says of a few tokens, as `Generator.answers` says."""
        return {"": answer_of(self, ids, temperature)}

    def close(self):
        """Shut the engine down and remove the adapter's files; the trainer keeps its process group."""
        with _default_group_kept():
            self._llm.llm_engine.engine_core.shutdown()
        if self._adapter_folder is not None:
            shutil.rmtree(self._adapter_folder)


@contextmanager
def _own_threads() -> Iterator[None]:
    """Have the engine start with the trainer's number of threads and leave it alone.

    Where the environment names none, as for one process, an engine on a GPU sets torch to one thread for good. To set
    it back afterwards would break what it compiled, which is guarded by that number.
    """
    name = "OMP_NUM_THREADS"
    unnamed = name not in os.environ
    os.environ.setdefault(name, str(torch.get_num_threads()))
    try:
        yield
    finally:
        if unnamed:
            del os.environ[name]


@contextmanager
def _default_group_kept() -> Iterator[None]:
    """Have vLLM end its own process groups alone: its shutdown also ends the default one, which is the trainer's."""
    from vllm.distributed import parallel_state

    whole = parallel_state.destroy_distributed_environment

    def own() -> None:
        if parallel_state._WORLD:
            parallel_state._WORLD.destroy()
        parallel_state._WORLD = parallel_state._NODE_COUNT = None

    parallel_state.destroy_distributed_environment = own
    try:
        yield
    finally:
        parallel_state.destroy_distributed_environment = whole


def _response(sample) -> Response:
    logprobs = [position[token].logprob for token, position in zip(sample.token_ids, sample.logprobs, strict=True)]
    return Response(list(sample.token_ids), logprobs, sample.finish_reason == "length")


def _of_prompt(ids, output) -> list[float]:
    """The log-probability of each token of a prompt but the first."""
    return [position[token].logprob for token, position in zip(ids[1:], output.prompt_logprobs[1:], strict=True)]
