"""What a template writes behind a turn, and which templates only append."""

import pytest
from support import smollm2, tiny_model

from align.data.templates import append_only, end_texts, heard
from align.model.chat_template import read, trl_templates

END = ["<|im_end|>"]
ADD = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}
LOWER, RESULT = {"role": "user", "content": "lower"}, {"role": "tool", "name": "add", "content": "579"}


@pytest.fixture(scope="module")
def tokenizer():
    return smollm2.tokenizer()


def behind(tokenizer, *messages, said_call=None, **variables):
    return heard(tokenizer, messages, said_call=said_call, ends=END, variables=variables)


def named(tokenizer, name):
    tokenizer.chat_template = read(f"trl:{name}")
    return tokenizer


def own(text):
    tokenizer = tiny_model.tokenizer()
    tokenizer.chat_template = text
    return tokenizer


def test_what_others_say(tokenizer):
    qwen = named(tokenizer, "qwen2_5")
    assert behind(qwen, LOWER) == "\n<|im_start|>user\nlower<|im_end|>\n<|im_start|>assistant\n"
    said = "\n<|im_start|>user\n<tool_response>\n579\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    assert behind(qwen, RESULT, said_call="add") == behind(qwen, RESULT, said_call="add", tools=[ADD]) == said
    two = behind(qwen, RESULT, RESULT | {"content": "<|im_end|>"}, said_call="add")  # a tool may say anything
    assert two.count("<tool_response>") == 2 and "<tool_response>\n<|im_end|>\n</tool_response>" in two
    assert behind(named(tokenizer, "qwen3_5_nothink"), RESULT, said_call="add").endswith("<think>\n\n</think>\n\n")
    assert behind(named(tokenizer, "qwen3_8"), LOWER).endswith("<|im_start|>assistant\n<think>\n")


def test_it_is_what_the_template_writes_into_a_real_conversation(tokenizer):
    qwen = named(tokenizer, "qwen2_5")
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 123, "b": 456}}}
    talk = [{"role": "user", "content": "123+456?"}, {"role": "assistant", "content": "So", "tool_calls": [call]}]
    start = qwen.apply_chat_template(talk, tools=[ADD], tokenize=False).removesuffix("\n")
    whole = qwen.apply_chat_template([*talk, RESULT], tools=[ADD], tokenize=False, add_generation_prompt=True)
    assert start.endswith(END[0]) and whole == start + behind(qwen, RESULT, said_call="add", tools=[ADD])


CHATML = tiny_model.CHAT_TEMPLATE
CASES = [
    (CHATML.replace("<|im_end|>\n{% endfor", "\n{% endfor"), LOWER, None, r"writes no end token \(<\|im_end\|>\)"),
    (CHATML.replace("{{ message['content'] }}", "{{ loop.length }} {{ message['content'] }}"), LOWER, None, "changes"),
    (CHATML, RESULT, "add", "leaves out calls of tools"),
    (CHATML.replace("{{ message['content'] }}", "{{ message['content'].x() }}"), LOWER, None, "refuses messages of us"),
    (CHATML + "{% if messages[2] %}{{ raise_exception('two') }}{% endif %}", LOWER, None, "of user, assistant, .*two"),
    ("{{ messages[0].content }}", LOWER, None, "leaves out what the policy said"),
    ("{{ messages[-1].content }}<|im_end|>", LOWER, None, "leaves out what the user says"),
]


@pytest.mark.parametrize("template, message, call, why", CASES)
def test_why_a_template_is_no_good(template, message, call, why):
    with pytest.raises(ValueError, match=f"^the chat template .*{why}"):
        behind(own(template), message, said_call=call)


APPEND_TEXT = {"lfm2", "lfm2_v2", "qwen2_5", "qwen2_5_vl", "qwen3_8", "qwen3_instruct_2507", "qwen3_vl"}
APPEND_TOOLS = {
    *("lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl", "lfm2_v2", "qwen2_5", "qwen3_instruct_2507", "qwen3_vl"),
    *("nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"),
    *("qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8"),
}


def test_which_templates_of_trl_only_append_for_a_real_tokenizer(tokenizer):
    """Of those for inference; plain qwen3 and others drop earlier thinking, or end turns with tokens of their own."""
    names = [name for name in trl_templates() if not name.endswith("_training")]
    why = {
        name: [append_only(named(tokenizer, name), tools, ends=END, variables={}) for tools in ([], [ADD])]
        for name in names
    }
    assert {name for name, (text, _) in why.items() if text is None} == APPEND_TEXT
    assert {name for name, (_, tools) in why.items() if tools is None} == APPEND_TOOLS
    assert why["qwen3"][0].startswith("the chat template changes earlier messages when others follow")
    assert why["qwen3"][1] == "the chat template changes a call of a tool once its result follows"
    assert "writes no end token" in why["llama3"][0] and "writes no end token" in why["gemma4"][1]


def test_thinking_that_is_dropped_at_once_is_seen_too():
    drops = CHATML.replace("message['content'] }}", "message['content'].split('</think>')[-1] }}")
    assert append_only(own(CHATML), [], ends=END, variables={}) is None
    assert "drops what the policy thought" in append_only(own(drops), [], ends=END, variables={})


def test_texts_of_end_tokens():
    tokens = tiny_model.tokenizer()
    assert end_texts(tokens, [tokens.eos_token_id, 10**6]) == END
