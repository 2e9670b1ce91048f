"""A result passes in a fresh load, and nothing that was changed since does."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_model
from support.pickles import Bomb
from support.results import WEIGHTS, recorded, retell, rewrite, zero_b
from support.run_summary import SUMMARY
from typer.testing import CliRunner

from align.__main__ import app
from align.result import record
from align.result.push import store_summary
from align.result.verify import Check, verify


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(base, adapter over it, whole model)."""
    folder = tmp_path_factory.mktemp("made")
    base = tiny_model.save_model(folder / "base")
    return base, recorded(str(base), folder / "adapter", "adapter"), recorded(str(base), folder / "model", "model")


@pytest.fixture
def adapter(made, tmp_path):
    """A copy of the adapter to spoil."""
    return Path(shutil.copytree(made[1], tmp_path / "copy"))


def failed(folder, base=None) -> tuple[str, str]:
    """(check, what was found) of the one that did not pass; those before it did."""
    *before, last = verify(str(folder), base)
    assert all(check.passed for check in before) and not last.passed
    return last.name, last.found


def test_an_adapter_and_a_model_pass(made):
    base, adapter, model = made
    checks = verify(str(adapter))
    assert all(check.passed for check in checks)
    names = [check.name for check in checks]
    assert names == ["files", "record", "values", "tensors", "description", "base", "log-probabilities"]
    gap, alone = (float(checks[-1].found.split(words)[1].split()[0]) for words in ("largest gap ", "off by "))
    assert gap < 1e-4 < 0.1 < alone  # a tenth of what is allowed, and the base would not pass
    assert [check.passed for check in verify(str(model))] == [True] * 6
    moved = shutil.copytree(base, base.with_name("elsewhere"), dirs_exist_ok=True)
    assert verify(str(adapter), str(moved))[-1].passed


@pytest.mark.parametrize(
    "file, spoil, check",
    [
        ("adapter_config.json", lambda text: text.replace('"lora_alpha": ', '"lora_alpha": 1'), "description"),
        ("tokenizer.json", lambda text: text[:-1], "description"),
        ("adapter_model.safetensors", lambda text: None, "reload"),
    ],
)
def test_what_says_how_to_read_it_is_part_of_a_result(made, tmp_path, file, spoil, check):
    folder = shutil.copytree(made[1], tmp_path / "adapter")
    (folder / "tokenizer.json").write_text("{}")
    said = json.loads((folder / "align.json").read_text())
    said["files"] = record.described(folder)
    (folder / "align.json").write_text(json.dumps(said))
    assert verify(str(folder))[-1].passed
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[:200] if spoil(str(content)) is None else spoil(content.decode()).encode())
    last = verify(str(folder))[-1]
    assert (last.name, last.passed) == (check, False), last


STRAYS = (
    "chat_template.jinja",
    "tokenizer_config.json",
    "generation_config.json",
    "secrets_config.json",
    "x.safetensors",
)


@pytest.mark.parametrize(
    "name", [*STRAYS, "added_tokens.json", "tokenizer.model", "vocab.json", "modeling.py", "notes"]
)
def test_what_nobody_recorded_does_not_pass(adapter, name):
    (adapter / name).write_text("{}")
    assert failed(adapter) == ("description", f"{name} is not in the record; take it out of {adapter}")
    (adapter / name).unlink()
    (adapter / "README.md").write_text("# Another card, as the hub's page may edit it")
    (adapter / ".gitattributes").write_text("*.safetensors filter=lfs")
    assert verify(str(adapter))[-1].passed


@pytest.mark.parametrize("name", ["tokenizer.json", "notes"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_is_not_read_and_does_not_pass(adapter, make, name):
    make(adapter / name)
    assert failed(adapter) == ("description", f"{name} is not in the record; take it out of {adapter}")


def test_templates_beside_the_recorded_ones_do_not_pass(adapter):
    """The tokenizer would read them."""
    (adapter / "additional_chat_templates").mkdir()
    (adapter / "additional_chat_templates/tool_use.jinja").write_text("other")
    what = f"additional_chat_templates/tool_use.jinja is not in the record; take it out of {adapter}"
    assert failed(adapter) == ("description", what)


@pytest.mark.parametrize("name", ["chat_template.jinja", "curve.png", "merges.txt"])
def test_what_was_recorded_and_is_gone_does_not_pass(made, adapter, name):
    (adapter / name).write_text("{}")
    retell(adapter, lambda said: said.update(files=record.described(adapter)))
    assert verify(str(adapter))[-1].passed
    (adapter / name).unlink()
    assert failed(adapter) == ("description", f"{name} is not what was recorded")


def before_it_was_complete(said):
    """Make a record as versions wrote it that hashed configurations, template and tokenizer only."""
    said["files"] = {name: said["files"][name] for name in said["files"] if name == "adapter_config.json"}
    said.pop("complete")
    said["base"].pop("hub", None)


def test_an_older_record_passes_and_tells_what_it_should_have_had(adapter):
    retell(adapter, before_it_was_complete)
    (adapter / "vocab.json").write_text("{}")  # such versions did not record it
    assert verify(str(adapter))[-1].passed
    (adapter / "chat_template.jinja").write_text("{}")  # and this they did
    assert failed(adapter)[1].startswith("chat_template.jinja is not in the record")


@pytest.mark.parametrize("old", [True, False])
def test_the_base_may_be_named_in_several_ways(made, adapter, old, tmp_path):
    """By the recipe's name, by the folder here, by the hub's name; a folder that is another model is refused."""
    config = json.loads((adapter / "adapter_config.json").read_text())

    def named(base):
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
        return verify(str(adapter))[-1]

    if old:
        retell(adapter, before_it_was_complete)
        retell(adapter, lambda said: said["base"].update(name=str(made[0])))
    else:
        retell(adapter, lambda said: said["base"].update(hub="org/name"))
        assert named("org/name").passed
    assert named(str(made[0])).passed
    assert named("/not/here").passed  # it was trained on another machine: the record's name leads to the base
    assert not named("org/other").passed and not named("relative/folder").passed
    other = tiny_model.save_model(tmp_path / "wide", hidden_size=192)
    assert named(str(other)).found.startswith(f"{other} is another base")


def test_a_run_s_folder(made, tmp_path):
    """As `push RUN`: its adapter or model, and whether its figures are of that."""
    run = tmp_path / "run"
    shutil.copytree(made[1], run / "adapter")
    assert [check.name for check in verify(str(run))] == [check.name for check in verify(str(made[1]))]
    store_summary(run, dataclasses.replace(SUMMARY, record=record.fingerprint(run / "adapter")))
    assert verify(str(run))[-1] == Check("figures", True, "summary.json is of this result")
    retell(run / "adapter", lambda said: said["versions"].update(torch="3"))
    check, found = failed(run)
    assert check == "figures" and "are not of this result" in found and "--resume" in found
    shutil.rmtree(run / "adapter")
    (run / "checkpoints").mkdir()
    assert failed(run) == ("files", f"{run}: is the folder of a run that has no result yet; end it with --resume")
    shutil.copytree(made[2], run / "model")
    store_summary(run, dataclasses.replace(SUMMARY, adapter=False, record=None))
    assert verify(str(run))[-1].passed


def test_the_record_names_the_base_and_shows_nothing_of_the_data(made):
    said = record.read(made[1])
    assert said.base.name == str(made[0]) and said.base.commit is None
    assert set(said.tensors) == set(load_file(made[1] / WEIGHTS))
    assert all(2 <= len(probe.ids) <= record.LONGEST for probe in said.probes)
    assert record.read(made[2]).base is None  # no path of a local base stands in what is pushed


def test_one_flipped_bit_is_found(adapter):
    data = bytearray((adapter / WEIGHTS).read_bytes())
    data[-3] ^= 1
    (adapter / WEIGHTS).write_bytes(data)
    check, found = failed(adapter)
    assert check == "tensors" and "sha256" in found


def not_finite(tensors):
    next(iter(tensors.values()))[0, 0] = torch.nan


def other_shape(tensors):
    name = next(iter(tensors))
    tensors[name] = tensors[name][:1].contiguous()


@pytest.mark.parametrize(
    "change, check, message",
    [
        (zero_b, "values", "all zero: the adapter changes nothing"),
        (not_finite, "values", "not finite"),
        (dict.clear, "values", "holds no tensors"),
        (other_shape, "tensors", "shape"),
        (lambda tensors: tensors.popitem(), "tensors", "is in the record and not in the files"),
        (lambda tensors: tensors.update(more=torch.ones(1)), "tensors", "more is not in the record"),
    ],
)
def test_spoiled_tensors(adapter, change, check, message):
    rewrite(adapter, change)
    name, found = failed(adapter)
    assert name == check and message in found


def change_probe(said):
    said["probes"][1]["logprob"][5] += 0.01


@pytest.mark.parametrize(
    "change, check, message",
    [
        (change_probe, "log-probabilities", "not the policy that was trained"),
        (lambda said: said["probes"][0]["logprob"].__setitem__(0, float("nan")), "log-probabilities", "gap nan"),
        (lambda said: said["probes"][0]["ids"].__setitem__(0, 10**6), "log-probabilities", "not of this model"),
        (lambda said: said["probes"][0]["logprob"].pop(), "log-probabilities", "not of this model"),
        (lambda said: said.update(temperature=1.0), "log-probabilities", "not the policy that was trained"),
        (lambda said: said.update(base=None), "base", "the record is that of a whole model"),
        (lambda said: said.update(probes=[]), "record", "is no record"),
        (lambda said: said["base"].update(sha256="0" * 64), "base", "is another base"),
    ],
)
def test_a_record_that_says_something_else(adapter, change, check, message):
    retell(adapter, change)
    name, found = failed(adapter)
    assert name == check and message in found


def test_another_base(made, adapter, tmp_path):
    other = Path(shutil.copytree(made[0], tmp_path / "other"))
    rewritten = load_file(other / "model.safetensors")
    rewritten["model.norm.weight"] *= 1.01
    save_file(rewritten, other / "model.safetensors", {"format": "pt"})
    assert failed(adapter, str(other))[1].startswith(f"{other} is another base")
    # also where the record was made to fit: then the log-probabilities tell
    digest = record.digest(record.stored(other))
    retell(adapter, lambda said: said["base"].update(sha256=digest))
    assert failed(adapter, str(other))[0] == "log-probabilities"
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "some/other"}))
    assert failed(adapter) == ("base", f"adapter_config.json names some/other, and the record says {made[0]}")


def test_a_base_of_another_shape(adapter, tmp_path):
    """Where record and base were made to fit each other, loading still refuses."""
    other = tiny_model.save_model(tmp_path / "wide", hidden_size=192)
    digest = record.digest(record.stored(other))
    retell(adapter, lambda said: said["base"].update(sha256=digest))
    check, found = failed(adapter, str(other))
    assert check == "log-probabilities" and "does not fit its base" in found


def test_a_base_that_is_not_there(adapter):
    shutil.move(adapter, adapter.with_name("moved"))
    check, found = failed(adapter.with_name("moved"), "/nowhere/at/all")
    assert check == "base" and "--base" in found


@pytest.mark.parametrize("kept", ["adapter_config.json", "config.json"])
def test_pickle_is_refused_and_not_opened(made, tmp_path, kept):
    folder = tmp_path / "pickled"
    folder.mkdir()
    shutil.copy(made[1 if kept.startswith("adapter") else 2] / kept, folder)
    torch.save(Bomb(tmp_path / "ran"), folder / "adapter_model.bin")
    torch.save(Bomb(tmp_path / "ran"), folder / "pytorch_model.bin")
    check, found = failed(folder)
    assert check == "files" and "safetensors" in found and "never read" in found
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change", [{"peft_type": "LOHA"}, {"megatron_config": {"x": 1}, "megatron_core": "antigravity"}]
)
def test_only_plain_lora_is_loaded(adapter, change):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | change))
    assert failed(adapter)[0] == "files"


def test_no_record(adapter):
    (adapter / record.NAME).unlink()
    assert failed(adapter)[0] == "record"


def test_the_command(adapter):
    run = CliRunner().invoke
    done = run(app, ["verify", str(adapter)])
    assert done.exit_code == 0 and "log-probabilities" in done.output and "FAILED" not in done.output
    done = run(app, ["verify", str(adapter), "--json"])
    assert json.loads(done.stdout)["passed"] and done.exit_code == 0
    retell(adapter, change_probe)
    done = run(app, ["verify", str(adapter)])
    assert done.exit_code == 1 and "FAILED" in done.output
    done = run(app, ["verify", str(adapter), "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 1 and not found["passed"] and found["checks"][-1]["name"] == "log-probabilities"
    done = run(app, ["verify", "no/such-thing-at-all/here"])
    assert done.exit_code == 1 and "no such folder" in done.output
