"""Answers of several turns: which tokens the policy chose, and what the template must not do."""

import pytest
from support import tiny_model
from support.rows import TOKENIZER, chat

from align.batch import Batch
from align.config.data_keys import Data
from align.data.prompts import DataError, Turn, fingerprint, turn_numbers
from align.data.read import load_prompts
from align.data.turns import cut, hash_of, turn_columns
from align.rollout.tensors import pairs_to_batch

END = TOKENIZER.eos_token_id
ASKED = [chat("2+3, then double it")]
FIRST, HEARD, SECOND = chat("add(2,3)", "assistant"), chat("5", "tool"), chat("10", "assistant")


def paired(path, tokenizer=TOKENIZER, **data):
    return load_prompts(Data(pairs=path, **data), tokenizer, 0).train


def a_pair(file, chosen, rejected=None, **data):
    rejected = rejected or [chat("no", "assistant")]
    return paired(file([{"prompt": ASKED, "chosen": chosen, "rejected": rejected}]), **data)[0]


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def test_what_the_policy_said_and_what_it_heard(file):
    answer = a_pair(file, [FIRST, HEARD, SECOND]).chosen
    said = ["add(2,3)<|im_end|>", "\n<|im_start|>tool\n5<|im_end|>\n<|im_start|>assistant\n", "10<|im_end|>"]
    assert [(turn.role, turn.text) for turn in answer.turns] == list(
        zip(["assistant", "tool", "assistant"], said, strict=True)
    )
    assert [answer.ids[turn.start : turn.end] for turn in answer.turns] == [ids(text) for text in said]
    numbers = turn_numbers(len(answer.ids), answer.turns)
    assert [numbers.count(n) for n in (0, -1, 1)] == [len(ids(text)) for text in said]
    assert not answer.truncated and answer.ids[-1] == END


def test_the_whole_is_what_the_template_writes(file):
    """Nothing is missing and nothing is twice: the policy reads the conversation as it would be rendered."""
    pair = a_pair(file, [FIRST, HEARD, HEARD, SECOND])
    whole = TOKENIZER.apply_chat_template([*ASKED, FIRST, HEARD, HEARD, SECOND], tokenize=False)
    assert whole.startswith(pair.text + TOKENIZER.decode(pair.chosen.ids))


def test_one_turn_stays_as_it_was(file):
    answer = a_pair(file, [FIRST]).chosen
    assert answer.turns == () and turn_numbers(3, ()) == [0, 0, 0]


def test_two_messages_of_the_policy_in_a_row_are_two_turns(file):
    answer = a_pair(file, [FIRST, HEARD, SECOND, SECOND]).chosen
    assert [turn.role for turn in answer.turns] == ["assistant", "tool", "assistant", "template", "assistant"]


def test_a_system_message_of_the_recipe_stands_before_them(file):
    pair = a_pair(file, [FIRST, HEARD, SECOND], system="Be brief.")
    assert pair.text.startswith("<|im_start|>system\nBe brief.") and len(pair.chosen.turns) == 3


@pytest.mark.parametrize("limit", [12, 9, 3])
def test_a_cut_leaves_nothing_that_the_policy_only_reads_at_the_end(file, limit):
    answer = a_pair(file, [FIRST, HEARD, SECOND], max_response_tokens=limit).chosen
    assert answer.truncated and len(answer.ids) <= limit
    assert [turn.role for turn in answer.turns] == ["assistant"] and answer.turns[-1].end == len(answer.ids)
    assert cut([1, 2, 3], [Turn("tool", 0, 3)], 2) == ([], [])


@pytest.mark.parametrize("chosen", [[HEARD, SECOND], [FIRST, HEARD]])
def test_others_do_not_begin_or_end_an_answer(file, chosen):
    with pytest.raises(DataError, match="row 1: 'chosen' must begin and end with an assistant message"):
        a_pair(file, chosen)


FORGETS = "{% for m in messages %}{% if loop.last or m.role != 'assistant' %}" + (
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDLESS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}" + (
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    "template, message",
    [
        (FORGETS, "several turns: the chat template changes earlier messages when others follow"),
        (ENDLESS, r"several turns: the chat template writes no end token \(.*im_end"),
    ],
)
def test_templates_that_do_not_only_append_are_named(file, template, message):
    tokens = tiny_model.tokenizer()
    tokens.chat_template = template
    rows = [{"prompt": ASKED, "chosen": [FIRST, HEARD, SECOND], "rejected": [SECOND]}]
    with pytest.raises(DataError, match=message):
        paired(file(rows), tokenizer=tokens)


def test_a_batch_knows_whose_tokens_they_are(file):
    pair = a_pair(file, [FIRST, HEARD, SECOND])
    batch = pairs_to_batch([pair], TOKENIZER)
    size = [len(answer.ids) for answer in pair.answers]
    assert batch.size.tolist() == size and batch.present.sum() == sum(size)
    heard = pair.chosen.turns[1]
    assert batch.length.tolist() == [size[0] - (heard.end - heard.start), size[1]]
    assert not batch.mask[0, heard.start : heard.end].any() and not batch.weight[0, heard.start : heard.end].any()
    assert (batch.turn[0, : heard.start] == 0).all() and (batch.turn[0, heard.end : size[0]] == 1).all()
    assert (batch.turn[~batch.mask] == -1).all() and (batch.turn[1, : size[1]] == 0).all()


def test_turn_rewards_and_states_have_their_places():
    turns = [Turn("assistant", 0, 2, reward=0.5, state=7), Turn("tool", 2, 3), Turn("assistant", 3, 6, reward=-1.0)]
    numbers = [turn_numbers(6, turns), [0]]
    columns = turn_columns([[1] * 6, [1]], numbers, [turns, ()])
    assert columns["turn_reward"].tolist() == [[0, 0.5, 0, 0, 0, -1], [0] * 6]
    assert columns["turn_state"].tolist() == [[7, 0, 0, hash_of([1, 1, 1]), 0, 0], [hash_of([]), 0, 0, 0, 0, 0]]
    batch = Batch.of([0, 0], [[1] * 6, [1]], turns=numbers, **columns)
    assert batch.turn.tolist() == [[0, 0, -1, 1, 1, 1], [0, -1, -1, -1, -1, -1]]


def test_a_fingerprint_sees_whose_tokens_they_are(file):
    several = a_pair(file, [FIRST, HEARD, SECOND])
    one = type(several)(**{**vars(several), "chosen": type(several.chosen)(several.chosen.ids, "", False)})
    assert fingerprint([several]) != fingerprint([one])
