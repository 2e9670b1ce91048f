"""Rows of data, and functions that give some."""

from align.config.data_keys import Data
from align.data.read import load_prompts
from support import tiny_model

TOKENIZER = tiny_model.tokenizer()


def numbered(count):
    return [{"prompt": f"question {i}", "answer": i} for i in range(count)]


def chat(text, role="user"):
    return {"role": role, "content": text}


def read(source, seed=0, tokenizer=TOKENIZER, **data):
    """The prompts of a source, with other keys of `data`."""
    return load_prompts(Data(prompts=source, **data), tokenizer, seed)


def split_rows():
    """The rows that a test puts into `split_rows.rows`."""
    return split_rows.rows


def others():
    """Likewise, for the evaluation."""
    return others.rows


def words():
    return ["just text"]


def wants_more(more):
    return more


def nothing():
    return []


def without_end():
    while True:
        yield {"prompt": "again"}
