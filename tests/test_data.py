"""align.data: sources, chat templates, the split by text, the order of prompts, and what cannot be used."""

import json
import pickle
import random
from collections import Counter
from pathlib import Path

import datasets
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from align.config.recipe import Data
from align.data.prompts import DataError, Prompt, Prompts, fingerprint
from align.data.read import load_prompts
from align.model.load import context_length, load_config, load_model, load_tokenizer

TOKENIZER = tiny.tokenizer()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path):
    """A function: rows to a JSON-lines file, text to a file of any name; returns its path."""

    def write(content, name="rows.jsonl"):
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def numbered(count):
    return [{"prompt": f"question {i}", "answer": i} for i in range(count)]


def chat(text, role="user"):
    return {"role": role, "content": text}


def read(source, seed=0, tokenizer=TOKENIZER, **data):
    return load_prompts(Data(prompts=source, **data), tokenizer, seed)


# ---- sources


def parquet(rows, path):
    datasets.Dataset.from_list(rows).to_parquet(path)
    return str(path)


def csv(rows, path):
    datasets.Dataset.from_list(rows).to_csv(path, index=False)
    return str(path)


def test_every_kind_of_source_gives_the_same_prompts(tmp_path, file):
    rows = numbered(5)
    sources = [
        file(rows),
        file(json.dumps(rows), "rows.json"),
        parquet(rows, tmp_path / "rows.parquet"),
        csv(rows, tmp_path / "rows.csv"),
    ]
    expected = [
        Prompt(TOKENIZER(r["prompt"])["input_ids"], r["prompt"], r["prompt"], {"answer": r["answer"]}) for r in rows
    ]
    for source in sources:
        assert read(source) == Prompts(expected, [])


def test_a_function_gets_the_arguments(monkeypatch, tmp_path):
    (tmp_path / "own_rows.py").write_text(
        "def rows(count, word='w'):\n    return ({'prompt': f'{word} {i}'} for i in range(count))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    prompts = read("own_rows:rows", args={"count": 3, "word": "v"}).train
    assert [prompt.prompt for prompt in prompts] == ["v 0", "v 1", "v 2"]


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_pickle_is_refused_and_not_opened(tmp_path):
    (tmp_path / "rows.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(DataError, match="(?i)pickle"):
        read("pandas", args={"data_files": str(tmp_path / "rows.pkl")})
    assert not (tmp_path / "ran").exists()


def test_a_fingerprint_is_of_what_is_used(file):
    """Tokens of prompts and answers, the columns, and their order."""
    rows = numbered(6)
    prints = {
        "one": fingerprint(read(file(rows)).train),
        "column": fingerprint(read(file([{**rows[0], "answer": 9}, *rows[1:]])).train),
        "prompt": fingerprint(read(file([{**rows[0], "prompt": "?"}, *rows[1:]])).train),
        "order": fingerprint(read(file(rows[::-1])).train),
        "fewer": fingerprint(read(file(rows[1:])).train),
    }
    assert len(set(prints.values())) == len(prints)
    assert fingerprint(read(file(rows, "elsewhere.jsonl")).train) == prints["one"]
    pairs = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    other = [{"prompt": "q", "chosen": "a", "rejected": "c"}]
    said = [fingerprint(load_prompts(Data(pairs=file(p)), TOKENIZER, 0).train) for p in (pairs, other, pairs)]
    assert said[0] == said[2] != said[1]


def test_arguments_reach_load_dataset(file):
    assert len(read(file(numbered(5)), args={"split": "train[:2]"}).train) == 2


def test_json_lines_keep_their_values(file):
    """A table would make a date of the text and 1.0 of the 1."""
    rows = [{"prompt": "a", "answer": "2024-01-01", "n": 1}, {"prompt": "b", "answer": ["x"], "n": 2.5}]
    assert [prompt.columns for prompt in read(file(rows)).train] == [{k: r[k] for k in ("answer", "n")} for r in rows]


def test_a_reasoning_gym_task(file):
    args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1, "size": 12, "seed": 3}
    prompts = read("rewards.gym:chain_sum", args=args, holdout=4)
    assert (len(prompts.train), len(prompts.held_out)) == (8, 4)
    assert all(prompt.conversational and "<|im_start|>user" in prompt.text for prompt in prompts.train)


# ---- plain and conversational


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
    marks = [TOKENIZER.convert_tokens_to_ids(mark) for mark in (tiny.START, tiny.END)]
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


# ---- the split

WORDS = st.sampled_from(["a", "b", "c", "d", "e", "f"])


def prompts_of(texts):
    return [{"prompt": text, "row": i} for i, text in enumerate(texts)]


@settings(deadline=None)
@given(texts=st.lists(WORDS, min_size=2, max_size=20), count=st.integers(0, 5), seed=st.integers(0, 3))
def test_held_out_prompts_are_distinct_and_disjoint_by_text(texts, count, seed):
    split_rows.rows = prompts_of(texts)
    distinct = set(texts)
    if count >= len(distinct):
        with pytest.raises(DataError, match=f"data.holdout: {count} of {len(distinct)} distinct prompts leaves none"):
            read("test_data:split_rows", holdout=count, seed=seed)
        return
    prompts = read("test_data:split_rows", holdout=count, seed=seed)
    held_out = [prompt.text for prompt in prompts.held_out]
    assert len(held_out) == len(set(held_out)) == count and set(held_out) <= distinct
    # every row whose text is not held out is trained on, duplicates too, in the order of the source
    expected = [i for i, text in enumerate(texts) if text not in held_out]
    assert [prompt.columns["row"] for prompt in prompts.train] == expected
    assert read("test_data:split_rows", holdout=count, seed=seed) == prompts


def split_rows():
    """The rows of the test above."""
    return split_rows.rows


def test_the_seed_chooses_what_is_held_out(file):
    source = file(numbered(30))
    chosen = {tuple(p.text for p in read(source, holdout=5, seed=seed).held_out) for seed in range(5)}
    assert len(chosen) == 5


def test_evaluation_prompts_of_their_own_leave_the_training_data(file):
    train, evaluation = file(numbered(6)), file([*numbered(2), {"prompt": "other"}], "eval.jsonl")
    prompts = read(train, eval_prompts=evaluation)
    assert [prompt.text for prompt in prompts.held_out] == ["question 0", "question 1", "other"]
    assert [prompt.text for prompt in prompts.train] == [f"question {i}" for i in range(2, 6)]


def test_evaluation_arguments(file):
    source = file(numbered(6))
    prompts = read(source, args={"split": "train[:4]"}, eval_prompts=source, eval_args={"split": "train[4:]"})
    assert (len(prompts.train), len(prompts.held_out)) == (4, 2)


# ---- the order


def some_prompts(size):
    return Prompts([Prompt([i], str(i), str(i), {}) for i in range(size)], [])


@given(size=st.integers(1, 12), count=st.integers(1, 7), seed=st.integers(0, 5), rng=st.randoms(use_true_random=False))
def test_prompts_are_a_function_of_the_step_and_each_epoch_covers_all_once(size, count, seed, rng):
    prompts = some_prompts(size)
    steps = -(-3 * size // count)
    in_order = [prompts.step(step, count, seed) for step in range(steps)]
    assert all(len(taken) == count for taken in in_order)
    for step in rng.sample(range(steps), steps):  # in any order, and in a fresh process' state
        assert some_prompts(size).step(step, count, seed) == in_order[step]
    stream = [prompt.text for taken in in_order for prompt in taken]
    for epoch in range(3):
        assert Counter(stream[epoch * size : (epoch + 1) * size]) == Counter(map(str, range(size)))


def test_epochs_and_seeds_have_orders_of_their_own():
    prompts = some_prompts(30)
    orders = [prompts.step(step, 30, seed) for step in range(3) for seed in range(3)]
    assert len({tuple(prompt.text for prompt in order) for order in orders}) == 9


def test_the_order_leaves_the_global_random_state_alone():
    random.seed(1)
    expected = random.random()
    random.seed(1)
    some_prompts(5).step(0, 3, 0)
    assert random.random() == expected


# ---- what cannot be used


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError) as caught:
        read(str(tmp_path / "none.jsonl"))
    assert str(caught.value) == f"data.prompts: {tmp_path}/none.jsonl: no such file"


def test_a_missing_evaluation_file(tmp_path, file):
    with pytest.raises(DataError, match=f"^data.eval_prompts: {tmp_path}/none.csv: no such file"):
        read(file(numbered(2)), eval_prompts=str(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", ""),
        ("a.jsonl", "\n"),
        ("a.json", "[]"),
        ("a.csv", ""),
        ("a.csv", "prompt,answer\n"),
        ("a.parquet", ""),
    ],
)
def test_an_empty_data_set(file, name, content):
    source = file(content, name)
    with pytest.raises(DataError, match=f"^data.prompts: {source}: .*no (rows|data)"):
        read(source)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": \n', "line 2 is not JSON"),
        ("a.json", "{", "JSON parse error"),
        ("a.parquet", "PAR", "Parquet file size is 3 bytes"),
        ("a.csv", "prompt\nx,y,z\nx,y\n1,2,3,4\n", "Expected 3 fields in line 4, saw 4"),
    ],
)
def test_a_broken_file(file, name, content, message):
    source = file(content, name)
    with pytest.raises(DataError, match=f"^data.prompts: {source}: .*{message}"):
        read(source)


ROWS = [
    # (rows, message after the source)
    (
        [{"question": "x", "answer": 1}],
        "row 0: 'prompt' must be text or a list of messages; there are: question, answer",
    ),
    ([{"prompt": "x"}, {"prompt": None}], "row 1: 'prompt' must be text or a list of messages; there are: prompt"),
    ([{"prompt": "x"}, {"prompt": ""}], "row 1: 'prompt' must be text"),
    ([{"prompt": 3}], "row 0: 'prompt' must be text"),
    ([{"prompt": []}], "row 0: 'prompt' must be text"),
    ([{"prompt": ["hi"]}], "row 0: a conversation is a list of {role: ..., content: ...}"),
    ([{"prompt": [{"from": "user", "value": "hi"}]}], "row 0: a conversation is a list of {role: ..., content: ...}"),
    (
        [{"prompt": "short"}, {"prompt": "x" * 101}],
        "row 1: the prompt has 101 tokens and data.max_prompt_tokens is 100; rai",
    ),
    (
        [{"prompt": [chat("x" * 94)]}],
        "row 0: the prompt has 113 tokens and data.max_prompt_tokens is 100; raise it or drop",
    ),
    ([{"prompt": "\u00e9"}], "row 0: the prompt has no tokens"),
]


@pytest.mark.parametrize("rows, message", ROWS, ids=[message for _, message in ROWS])
def test_a_row_that_cannot_be_used_is_named(file, rows, message):
    source = file(rows)
    with pytest.raises(DataError) as caught:
        read(source, max_prompt_tokens=100)
    assert str(caught.value).startswith(f"{source}: {message}")


def test_a_prompt_at_the_limit_is_used(file):
    assert len(read(file([{"prompt": "x" * 100}]), max_prompt_tokens=100).train[0].ids) == 100


def test_a_conversation_without_a_chat_template(file):
    bare = tiny.tokenizer()
    bare.chat_template = None
    with pytest.raises(DataError, match="row 0: the prompt is a conversation, but the tokenizer has no chat template"):
        read(file([{"prompt": [chat("hi")]}]), tokenizer=bare)
    assert read(file([{"prompt": "hi"}], "plain.jsonl"), tokenizer=bare).train[0].text == "hi"


def test_all_prompts_held_out(file):
    source = file(numbered(3))
    with pytest.raises(DataError, match="data.holdout: 3 of 3 distinct prompts leaves none to train on"):
        read(source, holdout=3)
    with pytest.raises(DataError, match=f"data.prompts: {source}: all 3 stand in data.eval_prompts too"):
        read(source, eval_prompts=source)


FUNCTIONS = [
    ("nowhere:rows", "cannot import 'nowhere' for 'nowhere:rows'; is it installed or on PYTHONPATH?"),
    ("align.data:nothing", "module 'align.data' has no attribute 'nothing'"),
    ("align:__version__", "'str' object is not callable"),
    ("builtins:dict", "no rows"),
    ("test_data:words", "row 0: must be a dictionary with a 'prompt', but it is 'just text'"),
    ("test_data:wants_more", "missing 1 required positional argument: 'more'"),
]


def words():
    return ["just text"]


def wants_more(more):
    return more


@pytest.mark.parametrize("source, message", FUNCTIONS, ids=[source for source, _ in FUNCTIONS])
def test_a_function_that_gives_no_rows(source, message):
    with pytest.raises(DataError) as caught:
        read(source)
    assert source in str(caught.value) and message in str(caught.value)


# ---- the tiny model that tests with real engines load_prompts


@given(text=st.text(st.sampled_from(tiny.CHARACTERS)))
def test_the_tiny_tokenizer_gives_text_back(text):
    ids = TOKENIZER(text)["input_ids"]
    assert len(ids) == len(text) and TOKENIZER.decode(ids) == text
    ended = TOKENIZER.decode([*ids, TOKENIZER.eos_token_id], skip_special_tokens=True)
    assert ended == text and TOKENIZER.eos_token_id == TOKENIZER.pad_token_id


def test_the_tiny_model(tmp_path):
    first, second = tiny.save_model(tmp_path / "a"), tiny.save_model(tmp_path / "b")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    tokenizer, model = load_tokenizer(str(first)), load_model(str(first), "float32")
    assert tokenizer(tokenizer.decode([5, 96, 97]))["input_ids"] == [5, 96, 97] and tokenizer.chat_template
    assert (type(model).__name__, context_length(load_config(str(first)))) == ("LlamaForCausalLM", 256)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.lm_head.weight is model.get_input_embeddings().weight and model.lm_head.weight[97].abs().sum() > 0
    logits = model(input_ids=model.dummy_inputs["input_ids"]).logits
    assert logits.shape[-1] == 128 and 1 < float(logits.detach().std()) < 4  # neither flat nor certain


def test_a_holdout_by_column_keeps_values_on_one_side(file):
    rows = [{"prompt": f"p{i}", "problem": [i // 3]} for i in range(30)]
    split = read(file(rows), holdout=5, holdout_by="problem")
    sides = [{prompt.columns["problem"][0] for prompt in side} for side in (split.train, split.held_out)]
    assert sides[0].isdisjoint(sides[1]) and len(split.held_out) == 6 and len(split.train) == 24
    with pytest.raises(DataError, match="holdout_by: row 0 has no column 'film'; there are: problem"):
        read(file(rows), holdout=5, holdout_by="film")
    with pytest.raises(DataError, match="leave none to train on"):
        read(file(rows[:6]), holdout=4, holdout_by="problem")


# ---- pairs

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
        ({"prompt": "p", "rejected": "a"}, "row 1: 'chosen' must be text as the prompt is, but it is None"),
        ({"prompt": "p", "chosen": "", "rejected": "a"}, "row 1: 'chosen' must be text"),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "row 1: 'rejected' must be text"),
        ({"prompt": "p", "chosen": [chat("a")], "rejected": "b"}, "row 1: 'chosen' must be text as the prompt is"),
        ({"prompt": [chat("p")], "chosen": "a", "rejected": "b"}, "row 1: 'chosen' must be a list of messages"),
        ({"prompt": "p", "chosen": "same", "rejected": "same"}, "row 1: chosen and rejected are the same response"),
        ({"chosen": "a", "rejected": "b"}, "row 1: 'prompt' must be text or a list of messages"),
        ("text", "row 1: must be a dictionary"),
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
        ({"prompt": USER, "chosen": [chat("a")]}, "'chosen' holds the answer alone, in assistant messages"),
        ({"prompt": USER, "chosen": [*USER, chat("a", "assistant")]}, "leave out the prompt that it repeats"),
        ({"prompt": [*USER, chat("a", "assistant")], "chosen": [chat("b", "assistant")]}, "ends with an assistant"),
        ({"prompt": [*USER, {"content": "x"}], "chosen": [chat("b", "assistant")]}, "'prompt': a message is"),
    ],
)
def test_bad_conversations_name_their_row(row, message, file):
    with pytest.raises(DataError, match=f"row 0: .*{message}"):
        paired(file([row]))


def test_answers_that_differ_only_behind_the_cut_are_named_as_such(file):
    rows = [{"prompt": "p", "chosen": "abcd", "rejected": "abce"}]
    with pytest.raises(DataError, match="the same response in their first 3 tokens"):
        paired(file(rows), max_response_tokens=3)


def test_pairs_are_held_out_by_prompt_and_judged_on_prompts_of_their_own(file):
    rows = [{"prompt": f"p{i // 2}", "chosen": f"a{i}", "rejected": "b"} for i in range(20)]
    prompts = file([{"prompt": "q"}, {"prompt": "r"}], "prompts.jsonl")
    split = load_prompts(Data(pairs=file(rows), holdout=3, eval_prompts=prompts), TOKENIZER, 0)
    assert {p.text for p in split.train}.isdisjoint(p.text for p in split.held_out)
    assert len(split.train) == 14 and [p.text for p in split.held_out[3:]] == ["q", "r"]
