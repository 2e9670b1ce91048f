"""The end of a run, its parts that need a model replaced: what it leaves in the folder of the result."""

import dataclasses
import errno
import json
import math
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError
from support import run_folder, tiny_model
from support.run_summary import SUMMARY

from align.learner import weights
from align.model.load import load_tokenizer
from align.result import record, report
from align.result.card import RunSummary, card
from align.result.push import SUMMARY as SUMMARY_FILE
from align.run import finish as end
from align.system.files import DiskError

PEFT = "base_model: /srv/someone/models/tiny-llama\n"


class Log:
    def __init__(self, steps=()):
        self._steps = steps
        self.pages = []

    def page(self, page, step):
        self.pages.append((page, step))

    def steps(self):
        return self._steps

    def evaluations(self):
        return []

    def evaluated_steps(self):
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

    def finish(summary: RunSummary, steps=()):
        monkeypatch.setattr(end, "summary", lambda *_: summary)
        recipe = SimpleNamespace(
            model=SimpleNamespace(adapter=summary.adapter or None, policy="org/base"),
            optim=SimpleNamespace(updates_per_step=2),
            run=SimpleNamespace(steps=40),
            target=lambda: None,
        )
        accelerator = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, end_training=lambda: None)
        run = SimpleNamespace(
            experiment=SimpleNamespace(recipe=recipe, objectives=()),
            accelerator=accelerator,
            out=tmp_path,
            learner=SimpleNamespace(model=None, engine=SimpleNamespace(module=None)),
            tokenizer=SimpleNamespace(chat_template=None, save_pretrained=lambda folder, save_jinja_files: None),
            evaluation=SimpleNamespace(responses=None),
            close=lambda: None,
        )
        log = Log(steps)
        end.finish(run, log)
        assert log.pages in ([], [(tmp_path / "xray.html", 40)])
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


def test_a_run_ends_with_the_page_of_its_first_and_last_step(tmp_path, finished):
    run_folder.make(tmp_path, steps=3)
    finished(SUMMARY)
    text = (tmp_path / "xray.html").read_text()
    assert text.startswith("<!doctype html>")
    found = end.page_of(tmp_path, None, [0, 3])
    assert [seen.step for seen in found.batches] == [1, 3] and "Of 3 steps 1 and 3" in found.notes[0]
    assert [seen.step for seen in end.page_of(tmp_path, None, []).batches] == [1, 3]
    assert [seen.step for seen in end.page_of(tmp_path, None, [1, 2]).batches] == [2]


@pytest.mark.parametrize(
    "steps, evaluated, shown",
    [([1, 2, 3, 4], [0, 2, 4], [1, 4]), ([1, 2, 3, 4], [2, 3], [3]), ([1, 2, 3], [0], [1, 3]), ([], [0], [])],
)
def test_steps_at_the_ends_are_those_of_evaluations(steps, evaluated, shown):
    """The policy that was evaluated after n steps samples step n + 1."""
    assert end.ends(steps, evaluated) == shown


def test_a_record_that_cannot_be_read_costs_the_page_and_nothing_else(tmp_path, finished, capsys):
    (tmp_path / "samples.jsonl").write_text('{"group": 0}\n')
    finished(SUMMARY)
    assert "no page of the tokens: " in capsys.readouterr().out and not (tmp_path / "xray.html").exists()
    assert (tmp_path / "adapter/README.md").exists()


def test_the_card_shows_as_many_rows_as_the_recipe_allows():
    """Held-out ones with their answers, or none: then the example is made up, in the form of the data."""
    log = SimpleNamespace(
        greedy_samples=lambda: (
            [{"prompt": f"{i}?", "response": "no", "reward": 0} for i in range(5)],
            [{"prompt": f"{i}?", "response": "yes", "reward": 1} for i in range(5)],
        )
    )
    assert end.greedy(log, 2) == [{"prompt": f"{i}?", "before": "no", "after": "yes"} for i in range(2)]
    assert end.greedy(log, 0) == []
    held_out = SimpleNamespace(prompts=[SimpleNamespace(prompt="0?")])
    for conversational, made_up in ((False, "What is 7 + 5?"), (True, [{"role": "user", "content": "What is 7 + 5?"}])):
        source = SimpleNamespace(train=[SimpleNamespace(conversational=conversational)])
        run = SimpleNamespace(evaluation=SimpleNamespace(responses=held_out), prompts={"data": source})
        assert end.example(run, 3) == "0?" and end.example(run, 0) == made_up


LEFT_OUT, HALF, TAKEN = (
    {"loss": 1.0, "grad_norm": norm, "skipped": n} for norm, n in ((math.inf, 2), (1.0, 1), (1.0, 0))
)
NO_SIGNAL = {"loss": 0.0, "skipped": 0}


@pytest.mark.parametrize("steps", [[LEFT_OUT], [LEFT_OUT] * 3, [NO_SIGNAL, LEFT_OUT]])
def test_a_run_whose_updates_were_all_left_out_has_no_result(tmp_path, finished, steps):
    with pytest.raises(end.NothingLearned, match=r"all \d updates were left out.*not finite.*no result.*dumps"):
        finished(SUMMARY, steps)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("steps", [[], [NO_SIGNAL], [LEFT_OUT, TAKEN], [LEFT_OUT, HALF], [TAKEN, NO_SIGNAL]])
def test_a_run_with_an_update_has_one(tmp_path, finished, steps):
    finished(SUMMARY, steps)
    assert (tmp_path / "adapter/README.md").exists()


FULL = OSError(errno.ENOSPC, "No space left on device")
OF_SAFETENSORS = SafetensorError("Error while serializing: I/O error: No space left on device")


@pytest.mark.parametrize("error", [FULL, OF_SAFETENSORS])
@pytest.mark.parametrize("where", ["weights", "tokenizer", "record", "curve", "card"])
def test_a_full_disk_is_told_with_the_file_and_how_to_go_on(tmp_path, finished, monkeypatch, where, error):
    def fail(*_, **__):
        raise error

    places = {
        "weights": (weights, "save"),
        "tokenizer": (SimpleNamespace, "save_pretrained"),
        "record": (record, "save"),
        "curve": (report, "plot"),
        "card": (end, "store_summary"),
    }
    if where == "tokenizer":
        monkeypatch.setattr(record, "score", lambda _, tokenizer: setattr(tokenizer, "save_pretrained", fail))
    else:
        monkeypatch.setattr(*places[where], fail)
    with pytest.raises(DiskError, match="cannot be written: .*No space left.*make room, then go on with --resume"):
        finished(SUMMARY)
    assert (tmp_path / "adapter").exists() == (where in ("curve", "card"))  # no half a result


def test_all_templates_of_a_tokenizer_are_in_a_file_of_the_record(tmp_path):
    tokenizer, templates = tiny_model.tokenizer(), {"default": "a{{ x }}", "tool_use": "b"}
    for template in (templates, "one"):
        folder = tmp_path / str(len(template))
        tokenizer.chat_template = template
        end.save_tokenizer(tokenizer, folder)
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert names <= set(record.FILES)
        assert load_tokenizer(str(folder)).chat_template == template
