"""Adapters of the policy and of a guide, on a tiny model."""

import pytest
import torch
from support import guides, tiny_model
from support.pickles import Bomb

from align.config.recipe import Adapter, Model
from align.model import adapters
from align.model.adapters import acting_as, add_adapter, add_guide, guide_model, is_adapter
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


# ---- a guide leaves the base as it is

IDS = torch.tensor([[5, 6, 7, 8, 20, 30]])


@torch.no_grad()
def answers(model, who="policy"):
    if who == "policy":
        return model(IDS).logits
    with acting_as(model, who):
        return model(IDS).logits


@pytest.mark.parametrize("name", [*guides.CONFIGS, *guides.WEIGHTS])
def test_a_guide_that_changes_the_base_is_refused_before_it_is_loaded(folder, tmp_path, name):
    more = None
    if name in guides.WEIGHTS:
        key = guides.WEIGHTS[name]
        more = {key: torch.full((128,) if "norm" in key else (128, 128), 0.5)}
    guide = guides.save(folder, tmp_path / "guide", guides.CONFIGS.get(name), more)
    model = adapted(folder, "all-linear")
    before = answers(model, "reference"), answers(model)
    for load in (
        lambda: add_guide(model, guide, folder),
        lambda: guide_model(guide, Model(policy=folder), folder, tiny_model.tokenizer()),
    ):
        with pytest.raises(ModelError, match="which policy and reference share|no plain LoRA adapter") as caught:
            load()
        assert str(caught.value).count("; ") >= 1 or "megatron" in name
    assert torch.equal(answers(model, "reference"), before[0]) and torch.equal(answers(model), before[1])


@pytest.mark.parametrize("name", guides.HARMLESS)
def test_policy_and_reference_answer_as_before_beside_a_guide(folder, tmp_path, name):
    made = {"target_modules": ["q_proj", "v_proj"], **guides.HARMLESS[name]}
    guide = guides.save(folder, tmp_path / "guide", **made)
    model = adapted(folder, "mlp")  # the guide has layers that the policy has not
    before = answers(model, "reference"), answers(model)
    add_guide(model, guide, folder)
    assert torch.equal(answers(model, "reference"), before[0]) and torch.equal(answers(model), before[1])
    alone = guide_model(guide, Model(policy=folder), folder, tiny_model.tokenizer())
    torch.testing.assert_close(answers(model, "guide"), answers(alone), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(answers(model, "guide"), before[0])


@pytest.mark.parametrize("says", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}])
def test_a_base_that_changed_in_spite_of_all_is_noticed(folder, tmp_path, monkeypatch, says):
    """As if the configuration had told nothing: the weights are compared before and after."""
    guide = guides.save(folder, tmp_path / "guide", says)
    monkeypatch.setattr(adapters, "guide_adapter", lambda name, base: name)
    with pytest.raises(ModelError, match=r"loading this adapter changed .*q_proj.weight of the policy's base"):
        add_guide(adapted(folder, "all-linear"), guide, folder)


def test_a_guide_of_other_layers_is_refused_and_not_left_at_its_first_weights(folder, tmp_path):
    other = tiny_model.save_model(tmp_path / "other", hidden_size=64)
    guide = guides.save(str(other), tmp_path / "guide", {"base_model_name_or_path": folder})
    with pytest.raises(ModelError, match="this adapter cannot be loaded over the policy's base"):
        add_guide(adapted(folder, "all-linear"), guide, folder)
    guide = guides.save(folder, tmp_path / "renamed", {"target_modules": ["k_proj"]})
    with pytest.raises(ModelError, match="of this adapter and of the policy's base do not fit"):
        add_guide(adapted(folder, "all-linear"), guide, folder)
