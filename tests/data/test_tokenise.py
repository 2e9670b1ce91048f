"""From rows to tokens: plain text and conversations, the answers of pairs."""

import json

import pytest
from support import tiny_model
from support.rows import TOKENIZER, chat, read

from align.config.data_keys import Data
from align.data.prompts import DataError
from align.data.read import load_prompts


def test_plain_prompts_stay_as_they_are(file):
    (prompt,) = read(file([{"prompt": "3 + 4", "answer": 7, "completion": "7"}]), system="Be brief.").train
    assert (prompt.text, prompt.prompt, prompt.conversational) == ("3 + 4", "3 + 4", False)
    assert TOKENIZER.decode(prompt.ids) == "3 + 4"
    assert prompt.columns == {"answer": 7}  # a completion would collide with the argument of reward functions


def test_conversations_get_the_chat_template(file):
    (prompt,) = read(file([{"prompt": [chat("3 + 4")]}])).train
    assert prompt.text == "<|im_start|>user\n3 + 4<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.prompt == [chat("3 + 4")] and prompt.conversational
    assert TOKENIZER.decode(prompt.ids) == prompt.text
    marks = [TOKENIZER.convert_tokens_to_ids(mark) for mark in (tiny_model.START, tiny_model.END)]
    assert [prompt.ids.count(mark) for mark in marks] == [2, 1]  # special tokens, not their letters


def test_system_is_for_conversations_that_have_none(file):
    rows = [{"prompt": [chat("hi")]}, {"prompt": [chat("Rhyme.", "system"), chat("hi")]}]
    without, own = read(file(rows), system="Be brief.").train
    assert without.text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>")
    assert without.prompt == [chat("Be brief.", "system"), chat("hi")]  # what reward functions see
    assert "Rhyme." in own.text and "Be brief." not in own.text


def test_a_tokenizer_that_adds_a_first_token_adds_it_once(file):
    """Chat templates write special tokens themselves; plain text gets them from the tokenizer."""

    class Adding:
        eos_token_id = TOKENIZER.eos_token_id
        chat_template = TOKENIZER.chat_template
        apply_chat_template = TOKENIZER.apply_chat_template

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [96] * add_special_tokens + TOKENIZER(text)["input_ids"]}

    conversation = read(file([{"prompt": [chat("hi")]}]), tokenizer=Adding()).train[0]
    assert conversation.ids == TOKENIZER(conversation.text)["input_ids"]
    plain = read(file([{"prompt": "hi"}], "plain.jsonl"), tokenizer=Adding()).train[0]
    assert plain.ids == [96, *TOKENIZER("hi")["input_ids"]]


THINKS = tiny_model.CHAT_TEMPLATE.replace(
    "assistant\n{% endif %}", "assistant\n{% if not thinks %}No.{% endif %}{% endif %}"
)


@pytest.mark.parametrize("given, ends", [({}, "No."), ({"thinks": True}, "assistant\n"), ({"thinks": False}, "No.")])
def test_variables_of_the_chat_template_reach_prompts_and_answers(file, given, ends):
    tokens = tiny_model.tokenizer()
    tokens.chat_template = THINKS
    prompts = file([{"prompt": [chat("hi")]}])
    pairs = file([{"prompt": [chat("hi")], "chosen": [chat("a", "assistant")]}], "pairs.jsonl")
    own = file([{"prompt": [chat("hi")], "chat_template_kwargs": {"thinks": True, "other": None}}], "own.jsonl")
    for data in (Data(prompts=prompts, chat_template_kwargs=given), Data(pairs=pairs, chat_template_kwargs=given)):
        (prompt,) = load_prompts(data, tokens, 0).train
        assert prompt.text.endswith(ends)
    assert load_prompts(Data(prompts=own, chat_template_kwargs=given), tokens, 0).train[0].text.endswith("assistant\n")


SCHEMA = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "required": ["a"]}}}

SHOWS = "{{ tools | tojson if tools else 'none' }}:{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize(
    "column, shown",
    [
        ([SCHEMA], json.dumps([SCHEMA])),
        (json.dumps([SCHEMA]), json.dumps([SCHEMA])),
        ([{**SCHEMA, "strict": None}], json.dumps([SCHEMA])),
        ([], "none"),
        (None, "none"),
    ],
)
def test_tools_of_a_row_reach_the_template(file, column, shown):
    tokens = tiny_model.tokenizer()
    tokens.chat_template = SHOWS
    prompts = file([{"prompt": [chat("hi")], "tools": column}])
    pairs = file([{"prompt": [chat("hi")], "chosen": [chat("yes", "assistant")], "tools": column}], "pairs.jsonl")
    assert load_prompts(Data(prompts=prompts), tokens, 0).train[0].text == f"{shown}:hi<|im_end|>"
    (pair,) = load_prompts(Data(pairs=pairs), tokens, 0).train
    assert pair.text == f"{shown}:hi<|im_end|>" and pair.chosen.text == "yes"


@pytest.mark.parametrize(
    "column, message",
    [
        ("[", "row 1: cannot be tokenised: Expecting value"),
        ("3", "row 1: .*'tools' must be a list of JSON schemas, but it is '3'"),
        (["add"], r"row 1: .*'tools' must be a list of JSON schemas, but it is \['add'\]"),
        ([SCHEMA], "row 1: the tokenizer's chat template writes no tools.*trl:qwen2_5"),
    ],
)
def test_tools_that_no_policy_would_know(file, column, message):
    with pytest.raises(DataError, match=message):
        read(file([{"prompt": [chat("hi")], "tools": column}]))


def test_variables_of_a_row_are_named_values(file):
    with pytest.raises(DataError, match="'chat_template_kwargs' must be {name: value}, but it is 'x'"):
        read(file([{"prompt": [chat("hi")], "chat_template_kwargs": "x"}]))
    for name in ("chat_template", "tokenize", "add_generation_prompt", "messages"):
        with pytest.raises(DataError, match=f"row 1: .*'chat_template_kwargs' holds '{name}'.*leave it out"):
            read(file([{"prompt": [chat("hi")], "chat_template_kwargs": {name: "x"}}]))


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "think",
            "data.chat_template_kwargs: the tokenizer's chat template does not read 'think'; did you mean 'thinks'?",
        ),
        ("tokenize", "data.chat_template_kwargs: tokenize is no variable of a template; leave it out"),
        ("add_generation_prompt", "data.chat_template_kwargs: add_generation_prompt is no variable of a template"),
        ("xyz", "data.chat_template_kwargs: the tokenizer's chat template does not read 'xyz'; leave it out"),
    ],
)
def test_a_variable_that_the_template_does_not_read_is_refused(file, name, message):
    tokens = tiny_model.tokenizer()
    tokens.chat_template = THINKS
    with pytest.raises(DataError) as caught:
        load_prompts(Data(prompts=file([{"prompt": "hi"}]), chat_template_kwargs={name: True}), tokens, 0)
    assert str(caught.value).startswith(message)


def conversation(*turns):
    return [chat(text, role) for role, text in turns]


ASKED = ("user", "hi")


@pytest.mark.parametrize(
    "chosen, rejected, prompt",
    [
        ([ASKED, ("assistant", "a")], [ASKED, ("assistant", "b")], [ASKED]),
        (
            [("system", "s"), ASKED, ("assistant", "a")],
            [("system", "s"), ASKED, ("assistant", "b")],
            [("system", "s"), ASKED],
        ),
        (
            [ASKED, ("assistant", "x"), ("user", "y"), ("assistant", "a")],
            [ASKED, ("assistant", "x"), ("user", "y"), ("assistant", "b")],
            [ASKED, ("assistant", "x"), ("user", "y")],
        ),
    ],
)
@pytest.mark.parametrize("text", [{}, {"prompt": "hi"}])
def test_a_prompt_that_chosen_and_rejected_share_is_as_if_it_were_written(file, chosen, rejected, prompt, text):
    """TRL's implicit-prompt form; a prompt as text beside conversations counts for nothing there either."""
    implicit = {"chosen": conversation(*chosen), "rejected": conversation(*rejected), "n": 1, **text}
    explicit = {
        "prompt": conversation(*prompt),
        "chosen": conversation(*chosen[len(prompt) :]),
        "rejected": conversation(*rejected[len(prompt) :]),
        "n": 1,
    }
    (found,), (expected,) = (
        load_prompts(Data(pairs=file([row], name)), TOKENIZER, 0).train
        for row, name in ((implicit, "a.jsonl"), (explicit, "b.jsonl"))
    )
    assert found == expected and found.chosen.text == "a" and found.rejected.text == "b"


@pytest.mark.parametrize(
    "row, message",
    [
        (
            dict(chosen="ab", rejected="ac"),
            "without it, chosen and rejected must be conversations that begin with the same",
        ),
        (
            dict(
                chosen=conversation(ASKED, ("assistant", "a")),
                rejected=conversation(("user", "ho"), ("assistant", "b")),
            ),
            "without it, chosen and rejected must be conversations that begin with the same",
        ),
        (
            dict(chosen=conversation(ASKED, ("assistant", "a")), rejected=conversation(ASKED, ("assistant", "a"))),
            "chosen and rejected are the same response",
        ),
        (
            dict(chosen=conversation(("assistant", "a")), rejected=conversation(("assistant", "b"))),
            "without it, chosen and rejected must be",
        ),
        (
            dict(
                chosen=conversation(ASKED, ("assistant", "a"), ASKED), rejected=conversation(ASKED, ("assistant", "b"))
            ),
            "'chosen' must begin and end with an assistant message",
        ),
        (dict(chosen=[{"role": "user"}], rejected=[{"role": "user"}]), "'prompt' must be text or a list of messages"),
        (dict(chosen=[], rejected=[]), "'prompt' must be text or a list of messages"),
    ],
)
def test_conversations_that_share_no_prompt(file, row, message):
    with pytest.raises(DataError) as caught:
        load_prompts(Data(pairs=file([row])), TOKENIZER, 0)
    assert message in str(caught.value)


def test_a_conversation_without_a_chat_template(file):
    bare = tiny_model.tokenizer()
    bare.chat_template = None
    with pytest.raises(DataError, match="row 1: the prompt is a conversation, but the tokenizer has no chat template"):
        read(file([{"prompt": [chat("hi")]}]), tokenizer=bare)
    assert read(file([{"prompt": "hi"}], "plain.jsonl"), tokenizer=bare).train[0].text == "hi"


END = TOKENIZER.eos_token_id


def paired(source, **data):
    return load_prompts(Data(pairs=source, **data), TOKENIZER, 0).train


def test_a_pair_s_tokens_are_those_that_would_be_sampled(file):
    """Text and messages: the answer, then one end token; what the template writes behind it is not trained."""
    plain = {"prompt": "2+2=", "chosen": "4", "rejected": "five"}
    chats = {"prompt": [chat("2+2=")], "chosen": [chat("4", "assistant")], "rejected": [chat("five", "assistant")]}
    for row, prompt in ((plain, "2+2="), (chats, "<|im_start|>user\n2+2=<|im_end|>\n<|im_start|>assistant\n")):
        (pair,) = paired(file([row]))
        assert pair.text == prompt and TOKENIZER.decode(pair.ids) == prompt
        assert pair.chosen.ids == [*TOKENIZER("4")["input_ids"], END]
        assert pair.rejected.ids == [*TOKENIZER("five")["input_ids"], END]
        assert (pair.chosen.text, pair.rejected.text) == ("4", "five") and not pair.chosen.truncated


def test_a_long_answer_is_cut_without_an_end(file):
    (pair,) = paired(file([{"prompt": "p", "chosen": "abcdef", "rejected": "ab"}]), max_response_tokens=3)
    assert pair.chosen.ids == TOKENIZER("abc")["input_ids"] and pair.chosen.truncated
    assert pair.rejected.ids[-1] == END and not pair.rejected.truncated


def test_a_row_without_a_rejected_answer_is_for_objectives_that_compare_nothing(file):
    (pair,) = paired(file([{"prompt": "p", "chosen": "a"}]))
    assert pair.rejected is None and pair.answers == [pair.chosen]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "p", "rejected": "a"}, "row 2: 'chosen' must be text as the prompt is, but it is None"),
        ({"prompt": "p", "chosen": "", "rejected": "a"}, "row 2: 'chosen' must be text"),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "row 2: 'rejected' must be text"),
        ({"prompt": "p", "chosen": [chat("a")], "rejected": "b"}, "row 2: 'chosen' must be text as the prompt is"),
        ({"prompt": [chat("p")], "chosen": "a", "rejected": "b"}, "row 2: 'chosen' must be a list of messages"),
        ({"prompt": "p", "chosen": "same", "rejected": "same"}, "row 2: chosen and rejected are the same response"),
        ({"chosen": "a", "rejected": "b"}, "row 2: 'prompt' must be text or a list of messages"),
        ("text", "row 2: must be a dictionary"),
    ],
)
def test_bad_pairs_name_their_row(row, message, file):
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match=message):
        paired(file([good, row]))


def test_an_answer_ends_at_the_first_token_at_which_a_sampler_stops(file):
    """A template may close a turn with another token than the tokenizer's end token."""
    stop = TOKENIZER("!")["input_ids"][0]
    rows = file([{"prompt": "p", "chosen": "ab!cd", "rejected": "x"}])
    (pair,) = load_prompts(Data(pairs=rows), TOKENIZER, 0, ends=[END, stop]).train
    assert pair.chosen.ids == TOKENIZER("ab!")["input_ids"] and pair.rejected.ids[-1] == END


USER = [chat("p")]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": USER, "chosen": ["a"], "rejected": [chat("b", "assistant")]}, "a message is .* but one is 'a'"),
        ({"prompt": USER, "chosen": [{}], "rejected": [chat("b", "assistant")]}, "a message is .* but one is {}"),
        ({"prompt": USER, "chosen": [{"role": "assistant", "content": None}]}, "a message is .* but one is"),
        (
            {"prompt": USER, "chosen": [{"role": "assistant", "tool_calls": [], "content": ""}]},
            "a message is .* one is",
        ),
        ({"prompt": USER, "chosen": [chat("a")]}, "'chosen' must begin and end with an assistant message"),
        ({"prompt": USER, "chosen": [*USER, chat("a", "assistant")]}, "leave out the prompt that it repeats"),
        ({"prompt": [*USER, chat("a", "assistant")], "chosen": [chat("b", "assistant")]}, "ends with an assistant"),
        ({"prompt": [*USER, {"content": "x"}], "chosen": [chat("b", "assistant")]}, "'prompt': a message is"),
    ],
)
def test_bad_conversations_name_their_row(row, message, file):
    with pytest.raises(DataError, match=f"row 1: .*{message}"):
        paired(file([row]))


def test_answers_that_differ_only_behind_the_cut_are_named_as_such(file):
    rows = [{"prompt": "p", "chosen": "abcd", "rejected": "abce"}]
    with pytest.raises(DataError, match="the same response in their first 3 tokens"):
        paired(file(rows), max_response_tokens=3)
