"""Adapters of the policy and of a guide, on a tiny model."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support import guides, tiny_model
from support.pickles import Bomb

from align.config.model_keys import Adapter, Model
from align.learner import weights
from align.model import adapters
from align.model.adapter_files import filled, guide_adapter, is_adapter, start_adapter
from align.model.adapters import acting_as, adapted_parts, add_adapter, add_guide, guide_model, scaled, start_from
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


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return tiny_model.save_mixture(tmp_path_factory.mktemp("mixture"))


@pytest.mark.parametrize("targets", ["all-linear", "attention"])
def test_of_a_mixture_experts_and_router_get_no_adapter(mixture, targets):
    model = adapted(mixture, targets)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(".self_attn." in name for name in trained)
    assert {p.shape[0] for name, p in model.named_parameters() if "lora_A" in name} == {2}  # PEFT would double it


@pytest.mark.parametrize(
    "targets, message",
    [
        (["q_proj", "gate"], "gate would be"),
        (["gate_proj"], "gate_proj would be"),
        (["gate_proj", "up_proj"], "gate_proj would be"),
        (["down_proj"], "down_proj would be the experts or the router of qwen3_moe, .* write attention"),
        ("mlp", "get no adapter: write attention"),
    ],
)
def test_targets_that_a_mixture_has_no_adapter_for(mixture, targets, message):
    with pytest.raises(ModelError, match=f"^model.adapter.targets: .*{message}"):
        adapted(mixture, targets)


@pytest.fixture
def saved(folder, tmp_path):
    """An adapter that was trained over the tiny model."""
    return str(tiny_model.save_guide(folder, tmp_path / "saved"))


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 12)[None]).logits


def started(folder, saved, adapter=None):
    """(the model that goes on from the adapter, the logits of its base, those of the adapter as PEFT loads it)."""
    base = load_model(folder, "float32")
    plain = logits(base)
    trained = logits(PeftModel.from_pretrained(load_model(folder, "float32"), saved).eval())
    section = filled(adapter or Adapter.model_validate({"from": saved}), saved)
    model = add_adapter(base, section, folder)
    start_from(model, start_adapter(saved, folder))
    return model, plain, trained


def test_a_run_goes_on_from_an_adapter(folder, saved, tmp_path):
    """The policy and the reference start as that adapter; what is trained moves the policy alone."""
    model, plain, trained = started(folder, saved)
    assert not torch.allclose(plain, trained, atol=0.1)
    assert {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad} == {"default"}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * parameter.requires_grad
    add_guide(model, str(tiny_model.save_guide(folder, tmp_path / "guide")), folder)
    moved = logits(model)
    for who, expected in {"reference": trained, "guide": trained, "base": plain}.items():
        with acting_as(model, who):
            assert torch.equal(logits(model), expected), who
    assert torch.equal(logits(model), moved) and not torch.allclose(moved, trained, atol=0.1)
    weights.save(model, tmp_path / "out", write=True)  # what is saved is the policy's adapter alone
    again = PeftModel.from_pretrained(load_model(folder, "float32"), str(tmp_path / "out")).eval()
    assert torch.allclose(logits(again), moved, atol=1e-5)


def test_a_fresh_adapter_has_the_base_as_its_reference(folder):
    model = adapted(folder, "all-linear")
    plain = logits(load_model(folder, "float32"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * parameter.requires_grad
    for who in ("reference", "base"):
        with acting_as(model, who):
            assert torch.equal(logits(model), plain)
    assert not torch.allclose(logits(model), plain, atol=0.1)


def test_rank_alpha_and_targets_are_those_of_the_start(saved):
    section = filled(Adapter.model_validate({"from": saved}), saved)
    assert (section.rank, section.alpha) == (2, 8.0) and {"q_proj", "down_proj"} < set(section.targets)
    same = Adapter.model_validate({"from": saved, "rank": 2, "alpha": 8, "targets": "all-linear"})
    assert filled(same, saved) == same  # said again is no error
    for key, value in {"rank": 4, "alpha": 16.0}.items():
        with pytest.raises(
            ModelError, match=f"^model.adapter.{key}: the recipe says {value:g}, and .* leave {key} out"
        ):
            filled(Adapter.model_validate({"from": saved, key: value}), saved)


@pytest.mark.parametrize(
    "change",
    [
        *({"use_dora": True}, {"use_rslora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}),
        *({"rank_pattern": {"q_proj": 1}}, {"alpha_pattern": {"q_proj": 1}}, {"lora_bias": True}),
        *({"init_lora_weights": kind} for kind in ("pissa", "olora", "pissa_niter_4", "corda", "loftq")),
        *({"layers_to_transform": [0]}, {"target_parameters": ["x"]}, {"a_later_kind": {"of": "LoRA"}}),
        *({"trainable_token_indices": [3]}, {"layer_replication": [[0, 1]]}, {"init_lora_weights": {"pissa": 1}}),
    ],
    ids=str,
)
def test_only_plain_lora_is_gone_on_from(folder, saved, change):
    file = Path(saved) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    why = f"its {min(change)} is .* only plain LoRA|{min(change)}: .* can change the base"
    with pytest.raises(ModelError, match=f"^model.adapter.from: .*({why})"):
        start_adapter(saved, folder)


@pytest.mark.parametrize("change", [{"lora_dropout": 0.1}, {"inference_mode": False}, {"init_lora_weights": False}])
def test_what_changes_no_value_is_no_error(folder, saved, change):
    """An adapter of another trainer: its dropout is not for this run, and the first weights are long gone."""
    file = Path(saved) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    model, _, trained = started(folder, saved)
    assert torch.equal(logits(model), trained)
    assert model.peft_config["default"].lora_dropout == 0


def test_the_base_has_one_model_and_several_names(folder, saved, monkeypatch):
    """A folder by its path from here and by its whole path; what align.json says counts as well."""
    monkeypatch.chdir(Path(folder).parent)
    assert start_adapter(saved, Path(folder).name) == saved
    with pytest.raises(ModelError, match="^model.adapter.from: .* was trained on .*, and model.policy is org/other"):
        start_adapter(saved, "org/other")
    with pytest.raises(ModelError, match="^model.guide: .* was trained on .*, and the policy's base is org/other"):
        guide_adapter(saved, "org/other")
    (Path(saved) / "align.json").write_text('{"base": {"name": "org/other"}}')
    assert start_adapter(saved, "org/other") == saved and guide_adapter(saved, "org/other") == saved
    for text in ("[]", "{", '{"base": null}', '{"base": {"name": null}}'):
        (Path(saved) / "align.json").write_text(text)
        assert start_adapter(saved, folder) == saved


@pytest.mark.parametrize("name", ["runs/dpo_x/adapter", "/nowhere/at/all"])
def test_a_guide_that_is_not_there(name):
    with pytest.raises(ModelError, match=f"model.guide: {name}: no such folder"):
        is_adapter(name)


@pytest.mark.parametrize("kind", ["guide", "adapter of the policy"])
def test_a_guide_in_pickle_is_refused_and_not_opened(folder, tmp_path, kind):
    guide = tiny_model.save_guide(folder, tmp_path / "guide")
    (guide / "adapter_model.safetensors").unlink()
    torch.save(Bomb(tmp_path / "ran"), guide / "adapter_model.bin")
    policy = Model(policy=folder, dtype="float32")
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
        lambda: guide_model(guide, Model(policy=folder, dtype="float32"), folder, tiny_model.tokenizer()),
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
    alone = guide_model(guide, Model(policy=folder, dtype="float32"), folder, tiny_model.tokenizer())
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


def test_another_scale_acts_inside_the_block_and_in_the_layers_named(folder):
    model = adapted(folder, ["q_proj", "o_proj"])
    assert adapted_parts(model) == ["o_proj", "q_proj"]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    own = dict(weights.merged(model))
    base = load_model(folder, "float32").state_dict()
    for by, part in ((0.0, "o_proj"), (1.1, None)):
        with scaled(model, by, part):
            other = dict(weights.merged(model))
        for name in (f"model.layers.0.self_attn.{part}.weight" for part in ("o_proj", "q_proj")):
            expected = base[name] + (by if part is None or part in name else 1.0) * (own[name] - base[name])
            torch.testing.assert_close(other[name], expected)
    again = dict(weights.merged(model))
    assert all(torch.equal(own[name], again[name]) for name in own)
