"""The end of a run, its parts that need a model replaced: what it leaves in the folder of the result."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from support.run_summary import SUMMARY

from align.learner import weights
from align.result import record, report
from align.result.card import RunSummary, card
from align.result.push import SUMMARY as SUMMARY_FILE
from align.run import finish as end

PEFT = "base_model: /srv/someone/models/tiny-llama\n"


class Log:
    def evaluations(self):
        return []

    def training_seconds(self):
        return 12.0


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Finish a run that has trained this, in `tmp_path`; its folder."""
    kept = {}

    def save(model, folder, *, write):
        folder.mkdir()
        (folder / "README.md").write_text(PEFT)  # as PEFT writes it

    monkeypatch.setattr(weights, "save", save)
    monkeypatch.setattr(record, "score", lambda *_: [])
    monkeypatch.setattr(record, "save", lambda folder, *_: kept.update(described=record.described(folder)))
    monkeypatch.setattr(report, "plot", lambda _, png: png.write_bytes(b"a curve"))

    def finish(summary: RunSummary):
        monkeypatch.setattr(end, "summary", lambda *_: summary)
        recipe = SimpleNamespace(
            model=SimpleNamespace(adapter=summary.adapter or None, policy="org/base"),
            run=SimpleNamespace(steps=40),
            target=lambda: None,
        )
        accelerator = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, end_training=lambda: None)
        run = SimpleNamespace(
            experiment=SimpleNamespace(recipe=recipe),
            accelerator=accelerator,
            out=tmp_path,
            learner=SimpleNamespace(model=None, engine=SimpleNamespace(module=None)),
            tokenizer=SimpleNamespace(save_pretrained=lambda folder: None),
            evaluation=SimpleNamespace(responses=None),
            close=lambda: None,
        )
        end.finish(run, Log())
        return kept["described"]

    return finish


@pytest.mark.parametrize("adapter, kind", [(True, "adapter"), (False, "model")])
def test_every_result_has_the_card_of_its_run(tmp_path, finished, adapter, kind):
    summary = dataclasses.replace(SUMMARY, adapter=adapter)
    described = finished(summary)
    text = (tmp_path / kind / "README.md").read_text()
    assert text == card(summary) and "trained with `align`: objective gfpo, 40 steps" in text
    assert "/srv" not in text and "someone" not in text and str(tmp_path) not in text
    assert RunSummary(**json.loads((tmp_path / SUMMARY_FILE).read_text())) == summary  # what a later push has
    assert record.described(tmp_path / kind) == described  # the record was written before, and is still right
    assert set(described) == {"curve.png"} and (tmp_path / "curve.png").is_file()


def test_the_card_shows_as_many_rows_as_the_recipe_allows():
    """Held-out ones with their answers, or none: then the example is made up, in the form of the data."""
    log = SimpleNamespace(
        greedy_samples=lambda: (
            [{"prompt": f"{i}?", "response": "no", "reward": 0} for i in range(5)],
            [{"prompt": f"{i}?", "response": "yes", "reward": 1} for i in range(5)],
        )
    )
    assert end.samples(log, 2) == [{"prompt": f"{i}?", "before": "no", "after": "yes"} for i in range(2)]
    assert end.samples(log, 0) == []
    held_out = SimpleNamespace(prompts=[SimpleNamespace(prompt="0?")])
    for conversational, made_up in ((False, "What is 7 + 5?"), (True, [{"role": "user", "content": "What is 7 + 5?"}])):
        source = SimpleNamespace(train=[SimpleNamespace(conversational=conversational)])
        run = SimpleNamespace(evaluation=SimpleNamespace(responses=held_out), prompts={"data": source})
        assert end.example(run, 3) == "0?" and end.example(run, 0) == made_up
