"""The same on a terminal."""

import io

import numpy as np
import pytest
from rich.console import Console
from support.hostile_text import ESCAPES, acting
from support.run_folder import ROOT

from align.config.experiment import load_experiment
from align.config.rules import REPLAY
from align.result.samples import RecordedRollout
from align.xray.against import agreement
from align.xray.credits import CARRIES, Credits
from align.xray.data import Look, Seen
from align.xray.text import show


def shown(look) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(show(look))
    return console.export_text()


def test_counts_and_agreement_are_those_of_the_data(seen):
    found = seen("composed", against=load_experiment(ROOT / "recipes/ktae_chain_sum.yaml", (), REPLAY))
    text = shown(found)
    for batch in found.batches:
        for name, count in batch.credits[0].waterfall():
            assert any(line.split()[:1] == [name.split()[0]] and f"{count:,}" in line for line in text.splitlines())
        agreed = agreement(batch.credits[0], batch.against[0])
        assert f"{agreed.both:,} of {agreed.either:,}" in text and f"{agreed.cosine:.6f}" in text
    best = [r for r in found.batches[-1].rollouts.values() if r.group == "2-0" and r.reward is not None]
    rewards = [float(line.split()[1].rstrip(":,")) for line in text.splitlines() if line.startswith("reward")]
    assert rewards[: len(best)] == sorted((round(r.reward, 4) for r in best), reverse=True)


@pytest.mark.parametrize("text", ESCAPES.values(), ids=ESCAPES)
def test_nothing_of_a_run_acts_on_the_terminal(text):
    row = RecordedRollout.model_construct(group=text, response_ids=[1, 2], token_text=[text, "x"], reward=1.0)
    credits = Credits(text, (text,), [True], [np.array([0, CARRIES])], {}, [np.ones(2)], [np.ones(2)])
    assert not acting(shown(Look(text, [Seen({"a:1": row}, [credits], [credits])], notes=[text])))


def test_a_megabyte_of_one_token_is_cut():
    row = RecordedRollout(group=0, response_ids=[1], token_text=["x" * 2**20], reward=1.0)
    credits = Credits("a", (), [True], [np.array([CARRIES])], {}, [np.ones(1)], [np.ones(1)])
    assert len(shown(Look("x", [Seen({"a:1": row}, [credits])]))) < 10_000
