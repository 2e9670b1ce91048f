"""What the vLLM engine is asked to do, and in which order, recorded by a fake: a CPU cannot sleep, and has no GPU's
runner. The real one is in tests/integration/; nothing here ran on a GPU."""

import os
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
import torch
from support.recipes import BASE
from transformers import LlamaConfig

from align.check.defaults import fill_defaults
from align.config.experiment import load_experiment
from align.config.launch import Launch
from align.learner import weights
from align.rollout.seeds import Draw
from align.rollout.vllm_engine import VLLM
from align.system.hardware import Hardware

GPU = Hardware("cuda", 80)


class Params(SimpleNamespace):
    __struct_fields__ = ()


class LLM:
    """Records its calls; like vLLM on a GPU it takes all threads but one where the environment names none."""

    def __init__(self, **arguments):
        self.arguments, self.calls = arguments, []
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)

    def __getattr__(self, name):
        def call(*arguments, **settings):
            self.calls.append((name, *arguments, *(f"{key}={value}" for key, value in settings.items())))

        return call

    def collective_rpc(self, name, kwargs):
        self.calls.append((name,))

    def generate(self, requests, params, **_):
        self.calls.append(("generate", [one.seed for one in params]))
        sample = SimpleNamespace(token_ids=[], logprobs=[], finish_reason="stop")
        return [SimpleNamespace(outputs=[sample] * one.n) for one in params]


@dataclass
class LoRARequest:
    name: str
    number: int
    path: str


@pytest.fixture
def engine_of(monkeypatch, tmp_path):
    """Makes an engine for a GPU, with keys of the recipe."""
    modules = {"vllm": dict(LLM=LLM, SamplingParams=Params), "vllm.lora": {}, "vllm.lora.request": {}}
    modules["vllm.lora.request"]["LoRARequest"] = LoRARequest
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(VLLM, "_settings", lambda engine, params: {})
    monkeypatch.setattr(weights, "save", lambda *_, **__: None)
    monkeypatch.setattr(weights, "merged", lambda model: [])

    def make(*keys):
        path = tmp_path / "recipe.yaml"
        path.write_text(BASE)
        experiment, _ = fill_defaults(load_experiment(path, keys), LlamaConfig(), Launch(hardware=GPU))
        return VLLM("model", experiment.recipe, 96, GPU, 2**30)

    return make


def test_the_engine_leaves_torch_its_threads(engine_of, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # as in one process
    try:
        torch.set_num_threads(3)
        engine_of()
        assert torch.get_num_threads() == 3 and "OMP_NUM_THREADS" not in os.environ
    finally:
        torch.set_num_threads(before)


def test_each_prompt_has_its_seed_on_a_gpu(engine_of):
    engine, seeds = engine_of(), Draw(0, 0, 0).seeds(0, [2, 5])
    found = engine.generate([[1], [2]], n=3, temperature=1.0, max_tokens=4, seeds=seeds)
    assert ("generate", list(seeds.requests)) in engine._llm.calls and [len(group) for group in found] == [3, 3]


MERGED = [("sleep", "level=2"), ("wake_up", "tags=['weights']"), ("reload_weights",), ("wake_up", "tags=['kv_cache']")]
ADAPTER = [("sleep", "level=0"), ("release_kv_cache_memory",), ("wake_up", "tags=['kv_cache']")]


@pytest.mark.parametrize(
    "keys, expected",
    [
        (["sampling.sync=merged"], MERGED),
        (["model.adapter={rank: 4}"], ADAPTER),
        (["sampling.sync=merged", "sampling.sleep=false"], [("reload_weights",)]),
    ],
)
def test_it_sleeps_until_the_next_sync(engine_of, keys, expected):
    """The weights are there before they are handed over, and the cache comes last."""
    engine = engine_of(*keys)
    engine.sleep()
    engine.sleep()  # once is enough
    engine.sync(None)
    assert engine._llm.calls == expected
    engine.sync(None)  # awake
    assert engine._llm.calls == expected + [("reload_weights",)] * (engine._adapter_folder is None)
