"""The chat template of a recipe, and that of the adapter or the stage that it goes on from."""

import json
import re

import pytest
import yaml
from support.results import recorded
from support.tiny_model import CHAT_TEMPLATE, tokenizer

from align.check.check import survey
from align.config.experiment import load_experiment
from align.config.launch import Launch
from align.run.finish import save_tokenizer

OTHER = CHAT_TEMPLATE.replace("<|im_end|>\n", "<|im_end|>\n\n")


@pytest.fixture
def other(bench):
    """A template beside the recipe."""
    bench.write("other.jinja", OTHER)
    return "other.jinja"


@pytest.fixture
def start(bench, monkeypatch):
    """A function: leaves the adapter of a run with a template, for the recipe to go on from."""
    monkeypatch.chdir(bench.root)

    def leave(template):
        adapter, tokens = recorded("model", bench.root / "runs/first/adapter", "adapter"), tokenizer()
        tokens.chat_template = template
        save_tokenizer(tokens, adapter)
        bench.put("model.adapter", {"from": "runs/first/adapter"})
        return adapter

    return leave


def prompts(bench):
    bench.checked()  # writes the recipe
    [source] = survey(load_experiment(bench.root / "recipe.yaml"), Launch()).sources.values()
    return [prompt.text for prompt in source.train]


def test_the_template_of_the_recipe_makes_the_prompts(bench, other):
    assert bench.checked()["facts"]["model"]["chat_template"] == "the tokenizer's own"
    assert all("<|im_end|>\n<" in text for text in prompts(bench))
    bench.put("model.chat_template", other)
    found = bench.checked()
    assert found["ok"] and found["facts"]["model"]["chat_template"].endswith("other.jinja")
    assert all("<|im_end|>\n\n<" in text for text in prompts(bench))
    bench.put("model.chat_template", "trl:qwen2_5")
    bench.put("data.max_prompt_tokens", 240)
    found = bench.checked()
    assert found["ok"], found
    assert found["facts"]["model"]["chat_template"] == "trl:qwen2_5"
    assert all("You are Qwen" in text for text in prompts(bench))


def test_a_template_that_is_no_good_hides_no_other_problem(bench):
    bench.put("model.chat_template", "trl:qwen")
    bench.row({"prompt": ""})
    problems = bench.checked()["problems"]
    assert any("model.chat_template: trl:qwen:" in text for text in problems)
    assert any("prompts.jsonl: row" in text for text in problems), problems


def test_the_adapter_to_go_on_from_has_another_template(bench, other, start):
    start(OTHER)
    told = "recipe.yaml:\\d+: model.adapter.from: runs/first/adapter was trained with another chat template than the "
    told += "tokenizer's own; write model.chat_template: runs/first/adapter/chat_template.jinja"
    [problem] = bench.checked()["problems"]
    assert re.search(told, problem), problem
    for same in ("runs/first/adapter/chat_template.jinja", other):
        bench.put("model.chat_template", same)
        assert bench.checked()["problems"] == []
    bench.put("model.chat_template", "trl:qwen2_5")  # meant
    bench.put("data.max_prompt_tokens", 240)
    found = bench.checked()
    assert found["ok"] and "trained with another chat template than trl:qwen2_5" in found["notes"][0]


def test_an_adapter_with_the_same_template_or_of_another_trainer_goes_on(bench, start):
    adapter = start(CHAT_TEMPLATE)
    found = bench.checked()
    assert found["ok"] and not any("template" in note for note in found["notes"])
    start(OTHER)
    (adapter / "align.json").unlink()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "model"}))
    found = bench.checked()
    assert found["ok"] and "another chat template than that of the policy" in found["notes"][0]


def first(bench, **model):
    recipe = {"model": {"policy": "model", **model}, "run": {"out": "runs/first", "steps": 1}}
    bench.write("first.yaml", yaml.safe_dump(recipe))


def test_the_stage_that_makes_the_adapter_names_a_template(bench, other):
    first(bench, adapter={"rank": 4}, chat_template=other)
    bench.put("model.adapter", {"from": "first.yaml"})
    [problem] = bench.checked()["problems"]
    assert "model.adapter.from: first.yaml trains with" in problem and "write model.chat_template: " in problem
    bench.put("model.chat_template", other)
    assert bench.checked()["ok"]


def test_the_stage_that_makes_the_policy_names_a_template(bench, other):
    """Its result will have it for its own."""
    first(bench, chat_template=other)
    bench.put("model.policy", {"from": "first.yaml"})
    found = bench.checked()
    assert found["ok"] and found["facts"]["model"]["chat_template"].endswith("other.jinja")
    assert all("<|im_end|>\n\n<" in text for text in prompts(bench))
