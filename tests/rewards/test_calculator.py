"""Sums with a tool: the environment, its questions, and scripted episodes that are tokens of a real one."""

import json
from pathlib import Path

import datasets
import pytest
import trl
import yaml
from support import tiny_model
from support.paths import ROOT

from align.config.data_keys import Data
from align.data.prompts import turn_numbers
from align.data.read import load_prompts
from align.data.templates import heard
from align.data.tokenise import opened
from align.environments import tools
from align.environments.contract import Call, Reply, Start
from rewards.calculator import Calculator, correct, episodes, questions

FINISHES = [{"role": "assistant", "content": "579"}]


def begun(a=123, b=456):
    found = Calculator()
    tools.reset(found, Start({"prompt": [], "answer": str(a + b), "a": a, "b": b}, 0), None)
    return found


def told(one, *calls):
    """What the tool says to calls of one turn."""
    return [message.content for message in tools.step(one, Reply("", calls), None).messages]


def worth(one):
    return tools.finish(one, None).reward


def test_a_good_call():
    one = begun()
    assert worth(one) == 0
    assert told(one, Call("add", {"a": 456, "b": 123})) == ["579"]
    assert worth(one) == 1 and tools.finish(one, None).attributes == {"calls": 1, "refused": 0, "used": True}


@pytest.mark.parametrize(
    "arguments",
    [{"a": "1", "b": 2}, {"a": 1.5, "b": 2}, {"a": True, "b": 2}, {"a": 10**10, "b": 2}, {"a": 1, "b": None}],
)
def test_what_the_tool_does_not_take(arguments):
    one = begun()
    assert told(one, Call("add", arguments)) == ["{'error': 'a and b must be whole numbers'}"]
    assert told(one, Call("add", {"a": 123, "b": 456})) == ["579"] and worth(one) == 0


def test_the_last_call_is_about_the_question():
    one = begun()
    assert told(one, Call("add", {"a": 1, "b": 456})) == ["457"] and worth(one) == 0
    assert told(one, Call("add", {"a": 123, "b": 456})) == ["579"] and worth(one) == 1


def test_the_tool_is_shown_to_the_model():
    (schema,) = tools.schemas(Calculator())
    parameters = schema["function"]["parameters"]
    assert schema["function"]["name"] == "add" and parameters["required"] == ["a", "b"]
    assert {argument["type"] for argument in parameters["properties"].values()} == {"integer"}
    assert tools.scores(Calculator())


CALLS = {"role": "assistant", "content": "579", "tool_calls": [{}]}


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        (FINISHES, 1),
        ([{"role": "assistant", "content": "123 + 456 = 0579."}], 1),
        ([{"role": "assistant", "content": "579 or 580"}], 0),
        ([{"role": "assistant", "content": ""}], 0),
        ([{"role": "assistant", "content": None}], 0),
        ([{"role": "tool", "content": "579"}], 0),
        ([*FINISHES, {"role": "tool", "content": "579"}], 0),
        ([CALLS], 0),
        ([], 0),
        ([{"role": "assistant", "content": "9" * 9999}], 0),
    ],
)
def test_the_last_message_answers(completion, value):
    assert correct([[]], [completion], [[]], answer=["579"], a=[123], b=[456]) == [value]


def test_questions_are_distinct_and_the_same_again():
    rows = questions(size=500, seed=1)
    assert rows == questions(size=500, seed=1) and rows[:5] != questions(size=500, seed=2)[:5]
    assert len({row["prompt"][-1]["content"] for row in rows}) == 500
    assert all(100 <= row[n] <= 999 for row in rows for n in "ab")
    assert all(row["answer"] == str(row["a"] + row["b"]) for row in rows)
    with pytest.raises(ValueError, match="size must be from 1 to 100000, not 0"):
        questions(size=0)


# Scripted episodes


@pytest.fixture(scope="module")
def tokenizer():
    """The tests' one with TRL's template of Qwen2.5."""
    found = tiny_model.tokenizer()
    found.chat_template = (Path(trl.__file__).parent / "chat_templates/qwen2_5.jinja").read_text()
    return found


def scripted(tokenizer, source="rewards.calculator:episodes", **args):
    data = Data(pairs=source, args=args, max_prompt_tokens=2000, max_response_tokens=2000)
    return load_prompts(data, tokenizer, 0).train


def test_a_script_is_an_episode_token_for_token(tokenizer):
    """What fine-tuning reads is what is sampled and appended when the episode is played."""
    (pair,), (row,) = scripted(tokenizer, size=1), episodes(size=1)

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    (question,) = load_prompts(Data(prompts="rewards.calculator:questions", args={"size": 1}), tokenizer, 0).train
    prompt = opened(question, "", tools.schemas(Calculator()), tokenizer)
    assert pair.ids == prompt.ids and '"description": "The first number."' in prompt.text
    arguments = {"a": row["a"], "b": row["b"]}
    call = json.dumps({"name": "add", "arguments": arguments})
    first, last = encode(f"<tool_call>\n{call}\n</tool_call><|im_end|>"), encode(f"{row['answer']}<|im_end|>")
    answer = tools.step(begun(**arguments), Reply("", [Call("add", arguments)]), None)
    said = [{"role": m.role, "name": m.name, "content": m.content} for m in answer.messages]
    tool = encode(heard(tokenizer, said, said_call="add", ends=["<|im_end|>"], variables=question.variables))
    assert pair.chosen.ids == [*first, *tool, *last]
    assert turn_numbers(len(pair.chosen.ids), pair.chosen.turns) == [0] * len(first) + [-1] * len(tool) + [1] * len(
        last
    )


def test_a_script_is_played_with_success():
    for row in episodes(size=20):
        one = begun(row["a"], row["b"])
        call = row["chosen"][0]["tool_calls"][0]["function"]
        assert told(one, Call(call["name"], call["arguments"])) == [row["chosen"][1]["content"]]
        assert worth(one) == 1 and correct([[]], [row["chosen"]], [[]], answer=[row["answer"]]) == [1]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_scripts_survive_a_file(tokenizer, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows, path = episodes(size=3), tmp_path / f"rows.{kind}"
    if kind == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) if kind == "jsonl" else json.dumps(rows))
    found = scripted(tokenizer, str(path), **({} if kind == "jsonl" else {"split": "train"}))
    wanted = scripted(tokenizer, size=3)
    assert [(one.ids, one.chosen) for one in found] == [(one.ids, one.chosen) for one in wanted]


def test_the_recipes_rows_are_apart():
    """Neither stage is evaluated on what it or the other is trained on, and both are on the same."""
    read = [yaml.safe_load((ROOT / f"recipes/{name}_calculator.yaml").read_text())["data"] for name in ("sft", "ktae")]
    asked = [questions(**data["args"]) for data in read] + [questions(**data["eval_args"]) for data in read]
    taught, trained, first, second = ({row["prompt"][-1]["content"] for row in rows} for rows in asked)
    assert first == second and not first & (taught | trained) and not taught & trained
