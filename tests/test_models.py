"""Adapters and the transformers engine on a tiny model; pypi: packages."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from huggingface_hub.utils import filter_repo_objects

from align.config.recipe import Adapter, Model
from align.learner import weights
from align.model.adapters import add_adapter, add_guide, guide_model, is_adapter
from align.model.load import load_config, load_model, load_tokenizer
from align.model.locate import ModelError, fingerprint, locate
from align.rollout.transformers_engine import Transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny.save_model(folder)
    return str(folder)


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


def test_merged_weights_are_those_of_a_merged_model_and_leave_the_trainer_alone(folder):
    model = adapted(folder, "all-linear")
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


def test_the_transformers_engine_reports_the_distribution_it_samples_from(folder):
    """Whatever the model's own generation settings say."""
    model = load_model(folder, "float32")
    model.generation_config.update(repetition_penalty=3.0, top_k=2, temperature=0.3, do_sample=True)
    own = model.generation_config
    engine = Transformers(model, [own.eos_token_id], own.pad_token_id)
    prompt = list(range(5, 15))
    settings = {"n": 3, "temperature": 0.8, "max_tokens": 9, "seed": 1}
    responses = [r for rows in engine.generate([prompt, prompt[:4]], **settings) for r in rows]
    assert len(responses) == 6 and model.generation_config is own
    for response, given in zip(responses, [prompt] * 3 + [prompt[:4]] * 3, strict=True):
        logits = model(torch.tensor([[*given, *response.ids]])).logits[0] / 0.8
        steps = logits.log_softmax(-1)[len(given) - 1 : -1]
        expected = steps.gather(-1, torch.tensor(response.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(response.logprobs), expected, atol=1e-4, rtol=1e-4)
        assert response.truncated == (response.ids[-1] != own.eos_token_id)
    again = engine.generate([prompt, prompt[:4]], **settings)
    assert [r for rows in again for r in rows] == responses


def test_greedy_is_one_response_the_likeliest_token_each_time(folder):
    model = load_model(folder, "float32")
    engine = Transformers(model, [model.generation_config.eos_token_id], 0)
    ((response,),) = engine.generate([[5, 6, 7]], n=1, temperature=0.0, max_tokens=6, seed=0)
    logits = model(torch.tensor([[5, 6, 7, *response.ids]])).logits[0, 2:-1]
    assert response.ids == logits.argmax(-1).tolist()


@pytest.mark.parametrize("name", ["pypi:-r/etc", "pypi:", "pypi:a b", "pypi:a==1;b"])
def test_a_pypi_name_is_a_package(name):
    with pytest.raises(ModelError, match="write PACKAGE"):
        locate(name)


def test_no_tokenizer_and_no_config(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ModelError, match="no model configuration"):
        load_config(str(tmp_path))


@pytest.mark.parametrize("name", ["runs/dpo_x/adapter", "/nowhere/at/all"])
def test_a_guide_that_is_not_there(name):
    with pytest.raises(ModelError, match=f"model.guide: {name}: no such folder"):
        is_adapter(name)


def test_a_fingerprint_is_of_the_weights(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"one")
    one = fingerprint(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"two")
    assert one != fingerprint(str(tmp_path)) and fingerprint("user/name") == "user/name"


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_model_in_pickle_is_refused_and_not_opened(folder, tmp_path):
    for file in Path(folder).glob("*.json"):
        shutil.copy(file, tmp_path)
    torch.save(Bomb(tmp_path / "ran"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no model could be loaded from safetensors"):
        load_model(str(tmp_path), "float32")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["guide", "adapter of the policy"])
def test_a_guide_in_pickle_is_refused_and_not_opened(folder, tmp_path, kind):
    guide = tiny.save_guide(folder, tmp_path / "guide")
    (guide / "adapter_model.safetensors").unlink()
    torch.save(Bomb(tmp_path / "ran"), guide / "adapter_model.bin")
    policy = Model(policy=folder)
    with pytest.raises(ModelError, match="^model.guide: .*never read from pickle"):
        if kind == "guide":
            guide_model(str(guide), policy, folder, tiny.tokenizer())
        else:
            add_guide(adapted(folder, "all-linear"), str(guide), folder)
    assert not (tmp_path / "ran").exists()


def test_code_that_a_model_brings_is_never_run(folder, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    (own / "its_code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    names = {"AutoConfig": "its_code.Config", "AutoModelForCausalLM": "its_code.Model"}
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"model_type": "its_own", "auto_map": names}))
    for read in (load_config, lambda path: load_model(path, "float32")):
        with pytest.raises(ModelError, match=r"code of its own \(auto_map\), which is never run"):
            read(str(own))
    # a type that transformers knows is loaded by transformers' code
    (own / "config.json").write_text(json.dumps(config | {"auto_map": names}))
    assert type(load_model(str(own), "float32")).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()


def test_what_is_fetched_of_a_repository(monkeypatch):
    """Neither pickle nor code, at the commit that is asked for."""
    asked = {}
    monkeypatch.setattr(
        "align.model.locate.snapshot_download", lambda name, **how: asked.update(how, name=name) or "folder"
    )
    assert locate("user/name", "a" * 40) == "folder" and asked["revision"] == "a" * 40
    files = [
        "model.safetensors",
        "config.json",
        "merges.txt",
        "chat_template.jinja",
        "adapter_model.bin",
        "x.pt",
        "x.py",
    ]
    files += ["onnx/model.safetensors", "consolidated.safetensors", "optimizer.pkl"]
    how = {"allow_patterns": asked["allow_patterns"], "ignore_patterns": asked["ignore_patterns"]}
    assert list(filter_repo_objects(files, **how)) == files[:4]
