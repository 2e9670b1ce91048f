"""Weights on their way to the sampler."""

import json
from itertools import groupby

import pytest
import torch
from safetensors.torch import load_file
from support import guides, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from align.config.model_keys import Adapter
from align.learner import weights
from align.model.adapters import add_adapter, add_guide
from align.model.load import load_model
from align.result import record


def test_merged_weights_are_those_of_a_merged_model_and_leave_the_trainer_alone(folder):
    model = add_adapter(load_model(folder, "float32"), Adapter(rank=2, targets="all-linear"), "tiny")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=generator)
    before = {name: p.clone() for name, p in model.named_parameters()}
    got = dict(weights.merged(model))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    right = dict(model.merge_and_unload().named_parameters(remove_duplicate=False))
    assert set(got) == set(right) and "lm_head.weight" in got  # a tied head is given too
    for name, value in right.items():
        torch.testing.assert_close(got[name], value)


def test_layers_that_only_the_guide_adapts_are_the_base_s(folder, tmp_path):
    model = add_adapter(load_model(folder, "float32"), Adapter(rank=2, targets="mlp"), folder)
    before = {name: value.clone() for name, value in weights.merged(model)}
    add_guide(model, guides.save(folder, tmp_path / "guide"), folder)
    after = dict(weights.merged(model))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("adapter", [None, Adapter(rank=2)])
def test_the_experts_of_a_mixture_are_given_as_its_files_have_them(adapter, tmp_path):
    model = load_model(str(tiny_model.save_mixture(tmp_path)), "float32")
    if adapter:
        model = add_adapter(model, adapter, "tiny")
    stored = load_file(tmp_path / "model.safetensors")
    got = dict(weights.merged(model))
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in got
    assert got.keys() == stored.keys()
    assert all(torch.equal(got[name], value) for name, value in stored.items())  # an adapter starts at 0


def test_weights_come_a_layer_at_a_time(tmp_path):
    """One block of a mixture at most is held beside the trainer's weights."""
    model = load_model(str(tiny_model.save_mixture(tmp_path)), "float32")
    order = [name.partition("layers.")[2][:1] for name, _ in weights.merged(model)]
    assert [layer for layer, _ in groupby(order)] == ["", "0", "1", ""]


SIZE = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, num_key_value_heads=2, head_dim=16)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "kind, config", [(LlamaForCausalLM, LlamaConfig), (Qwen3MoeForCausalLM, Qwen3MoeConfig)], ids=["llama", "experts"]
)
def test_saved_in_parts_it_is_what_the_library_saves_at_once(kind, config, tied, tmp_path, monkeypatch):
    model = kind(config(**SIZE, **(EXPERTS if kind is Qwen3MoeForCausalLM else {}), tie_word_embeddings=tied))
    model.save_pretrained(tmp_path / "whole")
    weights.save(model, tmp_path / "one", write=True)
    monkeypatch.setattr(weights, "SHARD", 20_000)
    weights.save(model, tmp_path / "parts", write=True)
    names, one, at_once = ({p.name for p in (tmp_path / kind).iterdir()} for kind in ("parts", "one", "whole"))
    assert names >= {"config.json", "generation_config.json", "model.safetensors.index.json"}
    files = {name for name in names if name.endswith(".safetensors")}
    index = json.loads((tmp_path / "parts/model.safetensors.index.json").read_text())["weight_map"]
    assert len(files) > 3 and set(index.values()) == files and not [name for name in names if name.startswith(".")]
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {
        path.name for path in (tmp_path / "one").iterdir()
    }
    whole = record.stored(tmp_path / "whole")
    assert record.stored(tmp_path / "one") == record.stored(tmp_path / "parts") == whole and set(index) == set(whole)
    weights.save(model, tmp_path / "none", write=False)
    assert not (tmp_path / "none").exists()
    assert all(len({index[name] for name in index if f".layers.{i}." in name}) == 1 for i in range(3))
