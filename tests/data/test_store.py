"""Rows on disk: they come back as they were, and what is asked of all of them is known without reading them."""

import datetime
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.rows import TOKENIZER, chat, numbered, read

from align.config.data_keys import Data
from align.data.prompts import Answer, DataError, Pair, Prompt, Turn
from align.data.read import load_prompts, read_rows
from align.data.split import by_row, by_text
from align.data.store import CannotKeep, Store, forms, longest, shortest, sizes

TALK = [chat("what?"), chat("")]

ROWS = [
    Prompt([5, 6], "ab", "ab", {"when": datetime.date(2024, 1, 1), "t": (1, 2.5, None), "n": 2**70}),
    Prompt([1], "c", TALK, {"when": None}, variables={"tools": []}),
    Pair([7, 8, 9], "d", "d", {}, chosen=Answer([1, 2], "x", True, (Turn("assistant", 0, 2),)), rejected=None, row=4),
    Pair([3], "e", TALK[:1], {}, chosen=Answer([1], "x", True), rejected=Answer([2] * 5, "y", True), row=5),
    Prompt([2, 9, 1], "f", "f", {"when": 1}),
]


@pytest.fixture
def stored():
    store = Store()
    for row in ROWS:
        store.add(row)
    store.flush()
    return store.rows()


def test_rows_come_back_as_they_were(stored):
    assert [*stored] == ROWS and [stored[i] for i in range(-5, 5)] == ROWS * 2
    assert [*stored[1:4]] == ROWS[1:4] and [*stored[::-1][:2]] == [ROWS[4], ROWS[3]]
    assert [*stored.take([4, 0])] == [ROWS[4], ROWS[0]] and not stored[5:]
    assert type(stored[0].columns["t"]) is tuple
    with pytest.raises(IndexError):
        stored[5]


def test_what_is_known_of_all_rows_is_that_of_a_list(stored):
    for mine, theirs in ((stored, ROWS), (stored[::-1], ROWS[::-1]), (stored[2:], ROWS[2:]), (stored[:0], [])):
        assert forms(mine) == forms(theirs)
        for one, other in zip(vars(sizes(mine)).values(), vars(sizes(theirs)).values(), strict=True):
            assert one.tolist() == other.tolist()
    assert sizes(stored).answers.tolist() == [[-1, -1], [-1, -1], [2, -1], [1, 5], [-1, -1]]
    assert sizes(stored).cut.tolist() == [0, 0, 1, 2, 0]
    assert longest(stored) == longest(ROWS) == ROWS[2]
    assert sum(count for form, count in forms(stored).items() if form.open) == 1
    assert [*stored.of(lambda form: form.pair)] == ROWS[2:4]
    for count in range(1, 7):
        expected = sorted({tuple(row.ids) for row in ROWS}, key=lambda ids: (len(ids), ids))[:count]
        assert shortest(stored, count) == shortest(ROWS, count) == expected


def test_many_equally_short_prompts():
    rows = [Prompt([i % 50, 1], "", "", {}) for i in range(500)][::-1]
    assert shortest(rows, 7) == [(i, 1) for i in range(7)]


def test_no_row_is_read_for_what_is_known_of_all(stored, monkeypatch):
    monkeypatch.setattr(os, "pread", lambda *_: pytest.fail("read"))
    assert sizes(stored[1:]).prompt.tolist() == [1, 3, 1, 3] and len(forms(stored.take([0, 1]))) == 2


def test_threads_read_side_by_side(stored):
    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(lambda i: stored[i % 5], range(2000))]
    assert found == [ROWS[i % 5] for i in range(2000)]


def test_a_value_that_cannot_be_written_down_is_named(monkeypatch):
    with pytest.raises(CannotKeep, match="column 'lock' holds .*; give text, numbers"):
        Store().add(Prompt([1], "a", "a", {"n": 1, "lock": threading.Lock()}))
    monkeypatch.setattr("support.rows.nothing", lambda: [{"prompt": "a"}, {"prompt": "b", "f": lambda: 0}])
    with pytest.raises(DataError, match="^support.rows:nothing: row 2: column 'f' holds"):
        read("support.rows:nothing")


def test_a_full_disk_is_told_once(file, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name):
            return getattr(self.file, name)

    whole = Store.__init__

    def full(self):
        whole(self)
        self.file = Full(self.file)

    monkeypatch.setattr(Store, "__init__", full)
    with pytest.raises(DataError) as caught:
        read(file(numbered(30)))
    assert str(caught.value).count("No space left") == 1 and "by TMPDIR" in str(caught.value)


def test_rows_are_taken_while_a_function_gives_them(monkeypatch):
    """A generator's next row is asked for when the one before is on disk."""
    waiting = []

    def rows():
        for i in range(5):
            waiting.append(i)
            yield {"prompt": f"p{i}"}

    add = Store.add
    monkeypatch.setattr("support.rows.nothing", rows)
    monkeypatch.setattr("align.data.read.check_survives", lambda *_: None)
    monkeypatch.setattr(Store, "add", lambda self, prompt: (waiting.append(prompt.text), add(self, prompt)))
    assert len(read("support.rows:nothing").train) == 5
    assert waiting == [told for i in range(5) for told in (i, f"p{i}")]


def test_a_source_that_breaks_off_has_no_rows(file):
    source = file('{"prompt": "a"}\n{"prompt": \n')
    found = read_rows(Data(prompts=source, eval_prompts=file(numbered(2), "eval.jsonl")), TOKENIZER)
    assert [row.text for row in found.everything] == ["question 0", "question 1"] and len(found.own) == 0
    assert len(found.problems) == 1 and "line 2 is not JSON" in found.problems[0]


def test_rows_of_one_text_are_told_apart_by_their_columns_where_asked(file):
    source = file([{"prompt": "go", "seed": seed} for seed in range(4)])
    assert len({*read_rows(Data(prompts=source), TOKENIZER, None, by_text).known_by}) == 1
    assert len({*read_rows(Data(prompts=source), TOKENIZER, None, by_row).known_by}) == 4


def test_many_wrong_rows_are_listed_in_a_few_lines(file):
    rows = [{"prompt": ""} for _ in range(30)] + [{"prompt": i} for i in range(25)] + [{"prompt": "fine"}]
    with pytest.raises(DataError) as caught:
        load_prompts(Data(prompts=file(rows)), TOKENIZER, 0)
    lines = str(caught.value).splitlines()
    assert len(lines) == 11 and "(and 29 more: rows 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...)" in lines[0]
    assert "55 rows cannot be used, for 26 reasons; these are the first 10" in lines[-1]
