"""Rows of every kind of source, the split by text or column, and what cannot be used."""

import json
import pickle

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pickles import Bomb
from support.rows import TOKENIZER, chat, numbered, read, split_rows

from align.config.data_keys import Data
from align.data.prompts import DataError, Prompt
from align.data.read import load_prompts

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
        found = read(source)
        assert ([*found.train], [*found.held_out], found.dropped) == (expected, [], 0)


def test_a_function_gets_the_arguments(monkeypatch, tmp_path):
    (tmp_path / "own_rows.py").write_text(
        "def rows(count, word='w'):\n    return ({'prompt': f'{word} {i}'} for i in range(count))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    prompts = read("own_rows:rows", args={"count": 3, "word": "v"}).train
    assert [prompt.prompt for prompt in prompts] == ["v 0", "v 1", "v 2"]


def test_pickle_is_refused_and_not_opened(tmp_path):
    (tmp_path / "rows.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(DataError, match="(?i)pickle"):
        read("pandas", args={"data_files": str(tmp_path / "rows.pkl")})
    assert not (tmp_path / "ran").exists()


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
            read("support.rows:split_rows", holdout=count, seed=seed)
        return
    prompts = read("support.rows:split_rows", holdout=count, seed=seed)
    held_out = [prompt.text for prompt in prompts.held_out]
    assert len(held_out) == len(set(held_out)) == count and set(held_out) <= distinct
    # every row whose text is not held out is trained on, duplicates too, in the order of the source
    expected = [i for i, text in enumerate(texts) if text not in held_out]
    assert [prompt.columns["row"] for prompt in prompts.train] == expected
    again = read("support.rows:split_rows", holdout=count, seed=seed)
    assert [*again.train, *again.held_out] == [*prompts.train, *prompts.held_out]


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
        "row 1: 'prompt' must be text or a list of messages; there are: question, answer",
    ),
    ([{"prompt": "x"}, {"prompt": None}], "row 2: 'prompt' must be text or a list of messages; there are: prompt"),
    ([{"prompt": "x"}, {"prompt": ""}], "row 2: 'prompt' must be text"),
    ([{"prompt": 3}], "row 1: 'prompt' must be text"),
    ([{"prompt": []}], "row 1: 'prompt' must be text"),
    ([{"prompt": ["hi"]}], "row 1: a conversation is a list of {role: ..., content: ...}"),
    ([{"prompt": [{"from": "user", "value": "hi"}]}], "row 1: a conversation is a list of {role: ..., content: ...}"),
    (
        [{"prompt": "short"}, {"prompt": "x" * 101}],
        "row 2: the prompt has 101 tokens and data.max_prompt_tokens is 100; rai",
    ),
    (
        [{"prompt": [chat("x" * 94)]}],
        "row 1: the prompt has 113 tokens and data.max_prompt_tokens is 100; raise it or drop",
    ),
    ([{"prompt": "\u00e9"}], "row 1: the prompt has no tokens"),
]


@pytest.mark.parametrize("rows, message", ROWS, ids=[message for _, message in ROWS])
def test_a_row_that_cannot_be_used_is_named(file, rows, message):
    source = file(rows)
    with pytest.raises(DataError) as caught:
        read(source, max_prompt_tokens=100)
    assert str(caught.value).startswith(f"{source}: {message}")


def test_a_prompt_at_the_limit_is_used(file):
    assert len(read(file([{"prompt": "x" * 100}]), max_prompt_tokens=100).train[0].ids) == 100


def test_prompts_that_are_too_long_can_be_left_out_and_are_counted(file):
    rows = [{"prompt": "x" * size, "n": size} for size in (100, 101, 99, 200)]
    found = read(file(rows), max_prompt_tokens=100, long_prompts="drop")
    assert [prompt.columns["n"] for prompt in found.train] == [100, 99] and found.dropped == 2
    pairs = [{**row, "chosen": "a", "rejected": "b"} for row in rows]
    data = Data(pairs=file(pairs, "pairs.jsonl"), max_prompt_tokens=100, long_prompts="drop")
    found = load_prompts(data, TOKENIZER, 0)
    first, second = (pair.row for pair in found.train)
    assert second - first == 2 and found.dropped == 2
    with pytest.raises(DataError, match="data.prompts: .*: every prompt has more than 10 tokens"):
        read(file(rows), max_prompt_tokens=10, long_prompts="drop")
    with pytest.raises(DataError, match="'prompt' must be text"):  # what is wrong otherwise stays an error
        read(file([rows[0], {"prompt": None}, rows[1]]), max_prompt_tokens=100, long_prompts="drop")


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
    ("builtins:dict", "is a part of Python; name a function of your own"),
    ("os.path:exists", "is a part of Python; name a function of your own"),
    ("support.rows:nothing", "no rows"),
    ("support.rows:without_end", "gives more than 9 rows; does it end?"),
    ("support.rows:words", "row 1: must be a dictionary with a 'prompt', but it is 'just text'"),
    ("support.rows:wants_more", "missing 1 required positional argument: 'more'"),
]


@pytest.mark.parametrize("source, message", FUNCTIONS, ids=[source for source, _ in FUNCTIONS])
def test_a_function_that_gives_no_rows(source, message, monkeypatch):
    monkeypatch.setattr("align.data.read.MOST", 9)
    with pytest.raises(DataError) as caught:
        read(source)
    assert source in str(caught.value) and message in str(caught.value)


def test_a_holdout_by_column_keeps_values_on_one_side(file):
    rows = [{"prompt": f"p{i}", "problem": [i // 3]} for i in range(30)]
    split = read(file(rows), holdout=5, holdout_by="problem")
    sides = [{prompt.columns["problem"][0] for prompt in side} for side in (split.train, split.held_out)]
    assert sides[0].isdisjoint(sides[1]) and len(split.held_out) == 6 and len(split.train) == 24
    with pytest.raises(DataError, match="holdout_by: a row has no column 'film'; there are: problem"):
        read(file(rows), holdout=5, holdout_by="film")
    with pytest.raises(DataError, match="leave none to train on"):
        read(file(rows[:6]), holdout=4, holdout_by="problem")


def test_pairs_are_held_out_by_prompt_and_judged_on_prompts_of_their_own(file):
    rows = [{"prompt": f"p{i // 2}", "chosen": f"a{i}", "rejected": "b"} for i in range(20)]
    prompts = file([{"prompt": "q"}, {"prompt": "r"}], "prompts.jsonl")
    split = load_prompts(Data(pairs=file(rows), holdout=3, eval_prompts=prompts), TOKENIZER, 0)
    assert {p.text for p in split.train}.isdisjoint(p.text for p in split.held_out)
    assert len(split.train) == 14 and [p.text for p in split.held_out[3:]] == ["q", "r"]
