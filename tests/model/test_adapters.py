"""Adapters of the policy and of a guide, on a tiny model."""

import pytest
import torch
from support import tiny_model
from support.pickles import Bomb

from align.config.recipe import Adapter, Model
from align.model.adapters import add_adapter, add_guide, guide_model, is_adapter
from align.model.load import load_model
from align.model.locate import ModelError


def adapted(folder, targets):
    return add_adapter(load_model(folder, "float32"), Adapter(rank=2, targets=targets), "tiny")


@pytest.mark.parametrize(
    "targets, layers",
    [
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("mlp", {"gate_proj", "up_proj", "down_proj"}),
        (["q_proj"], {"q_proj"}),
    ],
)
def test_adapter_targets(folder, targets, layers):
    trained = {name for name, p in adapted(folder, targets).named_parameters() if p.requires_grad}
    assert {name.split(".")[-4] for name in trained if "lora_A" in name} == layers
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize(
    "targets, message",
    [(["lm_head"], "lm_head cannot"), (["embed_tokens"], "embed_tokens cannot"), (["nope"], "nope")],
)
def test_targets_that_cannot_be(folder, targets, message):
    with pytest.raises(ModelError, match=f"^model.adapter.targets: .*{message}"):
        adapted(folder, targets)


@pytest.mark.parametrize("name", ["runs/dpo_x/adapter", "/nowhere/at/all"])
def test_a_guide_that_is_not_there(name):
    with pytest.raises(ModelError, match=f"model.guide: {name}: no such folder"):
        is_adapter(name)


@pytest.mark.parametrize("kind", ["guide", "adapter of the policy"])
def test_a_guide_in_pickle_is_refused_and_not_opened(folder, tmp_path, kind):
    guide = tiny_model.save_guide(folder, tmp_path / "guide")
    (guide / "adapter_model.safetensors").unlink()
    torch.save(Bomb(tmp_path / "ran"), guide / "adapter_model.bin")
    policy = Model(policy=folder)
    with pytest.raises(ModelError, match="^model.guide: .*never read from pickle"):
        if kind == "guide":
            guide_model(str(guide), policy, folder, tiny_model.tokenizer())
        else:
            add_guide(adapted(folder, "all-linear"), str(guide), folder)
    assert not (tmp_path / "ran").exists()
