"""Which chat templates let a model call tools, and what is read of whatever a model writes."""

import pickle
import random
from copy import copy

import pytest
from support import smollm2
from trl.chat_template_utils import add_response_schema

from align.environments import calls
from align.environments.calls import ADD, TALK, fitting, parse_reply, response_schema_problem
from align.environments.contract import Call
from align.model.chat_template import read, trl_templates


@pytest.fixture(scope="module")
def tokenizer():
    return smollm2.tokenizer()


def with_template(tokenizer, name):
    other = copy(tokenizer)
    other.chat_template = read(f"trl:{name}")
    return other


@pytest.fixture(scope="module")
def qwen(tokenizer):
    return add_response_schema(with_template(tokenizer, "qwen2_5"))


@pytest.fixture(scope="module")
def prompt(qwen):
    return qwen.apply_chat_template(TALK[:2], tools=[ADD], add_generation_prompt=True, return_dict=False)


def test_the_templates_that_fit_a_real_tokenizer(tokenizer):
    """Those of ChatML with special tokens that SmolLM2 has; not lfm2's, whose calls have tokens of their own."""
    before = tokenizer.chat_template
    found = fitting(tokenizer)
    assert found[:3] == ["qwen2_5", "qwen3_instruct_2507", "qwen3_vl"]
    assert {name.partition("_")[0] for name in found} == {"qwen2", "qwen3", "nemotron"} and "qwen3" not in found
    assert tokenizer.chat_template == before and getattr(tokenizer, "response_template", None) is None


def test_why_calls_cannot_be_read(tokenizer):
    fix = "; write model.chat_template: trl:qwen2_5 or trl:qwen3_instruct_2507 or "
    assert response_schema_problem(tokenizer).startswith(f"the chat template writes no calls of tools{fix}")
    changed = with_template(tokenizer, "qwen2_5")
    assert response_schema_problem(changed) is None and getattr(changed, "response_template", None) is None
    changed.chat_template += "\n"
    assert "TRL has no schema by which calls" in response_schema_problem(changed)
    changed.eos_token = "<|endoftext|>"
    assert response_schema_problem(changed).endswith("; none that TRL ships fits this tokenizer")


END = "<|im_end|>"


def tool_call(inner, end="</tool_call>"):
    return f"<tool_call>\n{inner}\n{end}"


@pytest.mark.parametrize(
    "said, text, found",
    [
        ("46" + END, "46", []),
        (tool_call('{"name": "add", "arguments": {"a": 1}}') + END, "", [("add", {"a": 1})]),
        ("So:\n" + tool_call('{"name": "add", "arguments": {"a": "7"}}') + END, "So:", [("add", {"a": 7})]),
        (tool_call('{"name": "add"}') + "\n" + tool_call('{"name": "b"}') + END, "", [("add", {}), ("b", {})]),
        (tool_call('{"name": "add", "arguments": [1]}') + END, "", [("add", [1])]),
        (tool_call('{"name": "add", "arguments": {"a": 1}}', ""), "", [("add", {"a": 1})]),  # cut by its length
        (tool_call('{"name": "add", "arguments": {"a": 1}') + END, None, []),  # no JSON: all of it is text
        (tool_call('{"arguments": {}}') + END, None, []),
        (tool_call('{"name": 3}') + END, None, []),
        (tool_call("3") + END, None, []),
        (tool_call('{"name": "add", "arguments": ' + "[" * 5000 + "]" * 5000 + "}") + END, None, []),
        (tool_call('{"name": "add", "arguments": ' + "[" * 2000 + "]" * 2000 + "}") + END, None, []),
        (tool_call('{"name": "add", "arguments": ' + "9" * 5000 + "}") + END, None, []),
    ],
)
def test_what_is_read_of_a_turn(qwen, prompt, said, text, found):
    ids = qwen(said)["input_ids"]
    expected = said.removesuffix(END) if text is None else text
    assert parse_reply(qwen, ids, prompt, [ADD]) == (expected, tuple(Call(*call) for call in found))


def test_an_empty_turn(qwen, prompt):
    assert parse_reply(qwen, [], prompt, [ADD]) == ("", ())
    assert parse_reply(qwen, [qwen.eos_token_id], prompt, [ADD]) == ("", ())


def test_a_call_of_another_kind_keeps_it():
    assert calls._call({"type": "retrieval", "name": "x"}) == Call("x", {}, "retrieval")
    assert calls._call({"type": None}) == Call("unknown", {}, "None")
    assert calls._call({"type": "function", "name": "flat", "arguments": 3}) == Call("flat", 3)


def test_a_call_without_a_key_that_the_schema_wants_is_text(qwen):
    """No schema of TRL 1.16 has it so; those that tokenizers bring along may."""
    own, field = copy(qwen), {"open": "<t>", "close": "</t>", "content": "json", "transform_each": True}
    field["transform"] = {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}}
    said = {"content": "text", "close_pattern": r"<\|im_end\|>\s*"}
    fields = {"content": said, "tool_calls": field}
    own.response_template = {"defaults": {"role": "assistant"}, "start_anchor": "assistant\n", "fields": fields}
    assert parse_reply(own, own('<t>[{"name": "a", "arguments": 1}]</t>')["input_ids"], [], [])[1] == (Call("a", 1),)
    assert parse_reply(own, own('<t>[{"name": "a"}]</t>')["input_ids"], [], []) == ('<t>[{"name": "a"}]</t>', ())


PIECES = [
    *("<tool_call>", "</tool_call>", "\n", '{"name": "add", "arguments": {"a": 1}}', '{"name":"add"', '"arguments":'),
    *("[1]", "{", "}", "[", "null", "1e999", "NaN", '"x"', ",", ":", "<function=add>", "</function>", "</parameter>"),
    *("<parameter=a>", "1", "<think>", "</think>", END, "<|im_start|>", "assistant", "\x01", "\x02", '"\\ud800"'),
    *("9" * 5000, '["add"]', '{"name": ["a"]}', '{"function": 3}', '{"type":"x","name":"add"}', "[" * 3000),
    *("<|channel|>commentary to=functions.add", "<|message|>", "<|call|>", "<|constrain|>json", "<|python_tag|>"),
    *("<|tool_call_start|>", "<|tool_call_end|>", "[add(a=1)]", "<arg_key>a</arg_key>", "<arg_value>1</arg_value>"),
    *("<|tool_call>call:add{a:1}<tool_call|>", "<|tool_call>call:", '{"name": "add", "parameters": {}}', "é", "�"),
]


def test_nothing_that_a_model_can_write_stops_it(tokenizer):
    """Random tokens, and pieces of calls at random, in every format that TRL reads."""
    draw, called = random.Random(0), 0
    for name in trl_templates():
        own = with_template(tokenizer, name)
        try:
            add_response_schema(own)
        except ValueError:
            continue
        for number in range(60):
            ids = [draw.randrange(len(tokenizer)) for _ in range(draw.randrange(40))]
            if number % 3:
                ids = own("".join(draw.choice(PIECES) for _ in range(draw.randrange(9))))["input_ids"]
            text, found = parse_reply(own, ids, tokenizer("<|im_start|>assistant\n")["input_ids"], [ADD])
            assert isinstance(text, str) and all(isinstance(call.name, str) for call in found)
            assert pickle.loads(pickle.dumps(found)) is not None
            called += len(found)
    assert called > 10
