"""The split by numbers is that of a few lines over lists: the same rows on each side, in the same order."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from support import rows as functions
from support.rows import TOKENIZER

from align.config.data_keys import Data
from align.data.prompts import DataError
from align.data.read import read_rows
from align.data.split import by_row, by_text, split_rows

ROW = st.tuples(st.sampled_from("abcdef"), st.sampled_from([0, 1, [2], None]))


def slow(rows, evaluation, count, seed, by, known_by):
    """([train], [held out]) as it was before rows were on disk; None where none is left to train on."""
    distinct = [*{known_by(row): row for row in rows}.values()]
    if count >= len(distinct):
        return None
    if by:
        groups = {}
        for row in distinct:
            groups.setdefault(repr(row.columns[by]), []).append(row)
        held_out = []
        for group in random.Random(seed).sample([*groups.values()], len(groups)):
            held_out += group if len(held_out) < count else []
        if len(held_out) == len(distinct):
            return None
    else:
        held_out = random.Random(seed).sample(distinct, count)
    held_out += evaluation
    known, apart = {known_by(row) for row in held_out}, {repr(row.columns.get(by)) for row in held_out}
    train = [row for row in rows if known_by(row) not in known]
    train = [row for row in train if not by or repr(row.columns.get(by)) not in apart]
    return (train, held_out) if train else None


@settings(deadline=None)
@given(
    rows=st.lists(ROW, min_size=1, max_size=25),
    evaluation=st.lists(st.sampled_from("abcxyz"), max_size=3),
    count=st.integers(0, 4),
    seed=st.integers(0, 9),
    by=st.sampled_from([None, "group"]),
    known_by=st.sampled_from([by_text, by_row]),
)
def test_the_split_is_that_of_lists(rows, evaluation, count, seed, by, known_by):
    functions.split_rows.rows = [{"prompt": text, "group": group, "row": i % 3} for i, (text, group) in enumerate(rows)]
    data = Data(prompts="support.rows:split_rows", holdout=count, holdout_by=by)
    if evaluation:
        data = data.model_copy(update={"eval_prompts": "support.rows:others"})
        functions.others.rows = [{"prompt": text} for text in evaluation]
    found = read_rows(data, TOKENIZER, known_by=known_by)
    everything = [*found.everything]
    expected = slow(everything[: len(rows)], everything[len(rows) :], count, seed, by, known_by)
    try:
        split = split_rows(data, found, seed)
    except DataError:
        assert expected is None
    else:
        assert ([*split.train], [*split.held_out]) == expected
