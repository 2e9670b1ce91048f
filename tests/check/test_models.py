"""Models of stages, and the adapter that a run goes on from."""

import json

import pytest
import yaml
from safetensors.torch import load_file, save_file
from support.results import recorded, retell

from align.check.check import survey
from align.config.experiment import load_experiment
from align.config.launch import Launch


@pytest.fixture
def start(bench, monkeypatch):
    """A finished run of the bench's model, whose adapter the recipe goes on from."""
    monkeypatch.chdir(bench.root)
    adapter = recorded("model", bench.root / "runs/first/adapter", "adapter")
    bench.put("model.adapter", {"from": "runs/first/adapter"})
    return adapter


def test_an_adapter_to_go_on_from_fills_the_section(bench, start):
    found = bench.checked()
    assert found["ok"], found["problems"]
    assert found["facts"]["models"]["adapter"] == "goes on from runs/first/adapter"
    bench.put("objective", {"name": "grpo", "add": [{"kl_policy_ref": {"coef": 0.1}}]})
    assert bench.checked()["facts"]["models"]["reference"] == "runs/first/adapter, frozen, over the policy's base"
    adapter = survey(load_experiment("recipe.yaml"), Launch()).experiment.recipe.model.adapter
    assert (adapter.rank, adapter.alpha) == (2, 32.0) and "q_proj" in adapter.targets  # vLLM is sized by it
    bench.put("model.adapter", json.loads(adapter.model_dump_json(by_alias=True)))  # as config.yaml has it
    assert bench.checked()["ok"]


def other_weights(bench, start):
    """The base was trained on, under its name."""
    tensors = load_file(bench.root / "model/model.safetensors")
    tensors["model.norm.weight"] *= 1.01
    save_file(tensors, bench.root / "model/model.safetensors", {"format": "pt"})


def other_name(bench, start):
    (start / "align.json").unlink()  # an adapter of another trainer
    bench.file("runs/first/adapter/adapter_config.json", base_model_name_or_path="org/other")


def moved_base(bench, start):
    (bench.root / "model").rename(bench.root / "elsewhere")
    bench.put("model.policy", "elsewhere")


@pytest.mark.parametrize(
    "change, key, message",
    [
        (other_weights, "from", "was trained over other weights than those of model: over model; name that as"),
        (other_name, "from", "was trained on org/other, and model.policy is model; name that base"),
        (
            lambda bench, _: bench.put("model.adapter.rank", 8),
            "rank",
            "the recipe says 8, and .* has 2; leave rank out",
        ),
        (lambda bench, _: bench.put("model.adapter.alpha", 8), "alpha", "the recipe says 8, and .* has 32; leave"),
        (
            lambda bench, _: bench.put("model.adapter.targets", "mlp"),
            "targets",
            "self_attn.*has some; leave targets out",
        ),
        (
            lambda bench, _: bench.put("model.adapter.from", "runs/first"),
            "from",
            "folder of a run; write runs/first/ad",
        ),
        (
            lambda bench, _: bench.put("model.adapter.from", "model"),
            "from",
            "is a whole model; name it as model.policy",
        ),
        (lambda bench, _: bench.put("model.adapter.from", "runs/a/b"), "from", "runs/a/b: no such folder"),
        (
            lambda bench, start: bench.file("runs/first/adapter/adapter_config.json", use_dora=True),
            "from",
            "its use_dora",
        ),
        (
            lambda bench, start: (start / "adapter_model.safetensors").unlink(),
            "from",
            "has no adapter_model.safetensors",
        ),
        (lambda bench, start: bench.cut("runs/first/adapter/adapter_model.safetensors"), "from", "cannot be used|cut"),
        (lambda bench, _: bench.put("run.out", "runs/first"), "out", "from which the run goes on, stands in it"),
        (
            lambda bench, _: bench.put("model.policy", "runs/first/adapter"),
            "policy",
            "is an adapter; write its base here",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:30]),
)
def test_an_adapter_that_does_not_fit(bench, start, change, key, message):
    import re

    change(bench, start)
    found = bench.checked()
    problems = "\n".join(found["problems"])
    assert not found["ok"] and re.search(rf"{key}: .*({message})", problems), problems


def test_a_base_that_was_moved_is_known_by_its_weights(bench, start):
    moved_base(bench, start)
    assert bench.checked()["ok"]
    retell(start, lambda said: said["base"].update(sha256="0" * 64))
    assert "over other weights than those of elsewhere" in bench.checked()["problems"][0]


def test_an_adapter_that_another_recipe_will_train(bench):
    adapter = {"rank": 4, "targets": ["q_proj"]}
    first = {"model": {"policy": "model", "adapter": adapter}, "run": {"out": "runs/first", "steps": 1}}
    bench.write("first.yaml", yaml.safe_dump(first))
    bench.put("model.adapter", {"from": "first.yaml"})
    found = bench.checked()
    assert found["ok"] and found["notes"][0] == "runs/first/adapter: not there yet; first run first.yaml"
    small = found["facts"]["model"]["trained"]
    bench.put("model.adapter", adapter)
    assert bench.checked()["facts"]["model"]["trained"] == small


def test_a_stage_that_has_not_run_is_a_note(bench):
    first = {"model": {"policy": "model"}, "run": {"out": "runs/first", "steps": 1}}
    bench.write("first.yaml", yaml.safe_dump(first))
    bench.put("model.policy", {"from": "first.yaml"})
    found = bench.checked()
    assert found["ok"] and found["notes"][0] == "runs/first/model: not there yet; first run first.yaml"
    bench.row({"prompt": ""})
    assert not bench.checked()["ok"]  # the data is looked at with the model that the first stage begins with


def test_weights_without_the_prefix_of_a_language_model_are_those_that_are_loaded(bench):
    """As the decoder alone is saved; transformers adds the prefix."""
    file = bench.root / "model/model.safetensors"
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    assert bench.checked()["problems"] == []
