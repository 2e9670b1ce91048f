"""What the page shows of an objective is what `align credit` prints, for every recipe that is shipped."""

import numpy as np
import pytest
from support import run_folder

from align.commands.credit import credit
from align.config.experiment import load_experiment
from align.config.rules import REPLAY
from align.registry import OBJECTIVES
from align.xray.credits import CARRIES, NO_PART
from align.xray.data import page
from align.xray.read import look

RECIPES = sorted((run_folder.ROOT / "recipes").glob("*.yaml"))


def entries(line):
    return line.get("objectives", [line])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_number_is_that_of_align_credit(recipe, tmp_path):
    experiment = run_folder.make(tmp_path, recipe)
    lines = credit(load_experiment(recipe, (), REPLAY), tmp_path / "samples.jsonl")
    rows, summaries = ([x for x in lines if ("group" in x) == is_row] for is_row in (True, False))
    found, place = look(tmp_path, own=experiment), 0
    assert len(found.batches) == len(summaries) and not found.notes
    for seen, summary in zip(found.batches, summaries, strict=True):
        mine = rows[place : place + len(seen.rollouts)]
        place += len(seen.rollouts)
        for number, (credits, entry) in enumerate(zip(seen.credits, entries(summary), strict=True)):
            signal = entry["signal"]
            waterfall = dict(credits.waterfall())
            assert waterfall.pop("generated") == signal["generated"]
            assert waterfall.pop("carrying gradient") == signal["carrying"]
            assert waterfall == signal["taken"]
            assert credits.facts["loss"] == entry["loss"] and credits.facts["count"] == entry["count"]
            for row, theirs in enumerate(mine):
                theirs = entries(theirs)[number]
                assert credits.kept[row] == theirs["kept"]
                np.testing.assert_array_equal(credits.credit[row], theirs["advantage"])
                np.testing.assert_array_equal(credits.weight[row], theirs["weight"])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sums_over_the_page_are_those_of_align_credit(name, every):
    """The columns of the page, of every objective that there is: a new one is here by itself."""
    look, lines = every(name)
    made, rows = page(look), [line for line in lines if "group" in line]
    ((objective,), taken) = made.head["objectives"], made.columns["taken 0"]
    assert objective["name"] == name and not look.notes
    starts = made.columns["start"]
    for number, summary in enumerate(line for line in lines if "group" not in line):
        place = [i for i, row in enumerate(made.head["rows"]) if row["batch"] == number]
        here = slice(starts[place[0]], starts[place[-1] + 1])
        counts = {piece["name"]: int((taken[here] == i).sum()) for i, piece in enumerate(objective["pieces"])}
        assert counts == summary["signal"]["taken"]
        assert (taken[here] == CARRIES).sum() == summary["signal"]["carrying"] > 0
        assert (taken[here] >= CARRIES).sum() == summary["signal"]["generated"]
        for column, key in (("credit 0", "advantage"), ("weight 0", "weight")):
            theirs = np.concatenate([rows[i][key] for i in place])
            np.testing.assert_array_equal(made.columns[column][here], theirs)
            assert made.columns[column][here].sum(dtype=float) == theirs.sum() and np.abs(theirs).sum() > 0


def test_what_was_decided_is_shown_without_a_recipe_but_for_what_the_loss_knows(runs):
    folder, _ = runs["composed"]
    bare, whole = look(folder).batches[-1].credits[0], look(folder, own=runs["composed"][1]).batches[-1].credits[0]
    assert bare.pieces == whole.pieces[:-1] and not bare.facts and whole.facts
    for ours, theirs in zip(bare.credit, whole.credit, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    clipped = len(bare.pieces)
    for ours, theirs in zip(bare.taken_by, whole.taken_by, strict=True):
        np.testing.assert_array_equal(ours, np.where(theirs == clipped, -1, theirs))


def test_pairs_have_no_credit_until_the_loss_is_asked(runs):
    folder, experiment = runs["tgdpo"]
    bare, whole = (look(folder, own=own).batches[-1].credits[0] for own in (None, experiment))
    assert np.isnan(np.concatenate(bare.credit)).all() and not bare.implied
    assert np.isfinite(np.concatenate(whole.credit)).all() and whole.implied


def test_a_response_without_reward_is_in_no_count(runs):
    folder, experiment = runs["composed"]
    seen = look(folder, own=experiment).batches[0]
    without = [i for i, row in enumerate(seen.rollouts.values()) if row.reward is None]
    assert without and all((seen.credits[0].taken_by[i] == NO_PART).all() for i in without)
    tokens = sum(len(r.response_ids) for r in seen.rollouts.values() if r.reward is not None)
    assert dict(seen.credits[0].waterfall())["generated"] == tokens
