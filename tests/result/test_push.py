"""What reaches a loopback hub and what does not; results, bases and gates that stop a push before."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
from support import tiny_model
from support.hub_server import client_environment, hub_stub
from support.paths import PYTHONPATH
from support.run_summary import SUMMARY

from align.config.recipe import Gate
from align.config.rules import check_measure
from align.result.push import GateShut, NotPushed, push_run, reached, store_summary

# one process, because HF_ENDPOINT is read at import; `verified` starts others
CLIENT = """
import json, shutil, sys
from dataclasses import replace
from pathlib import Path
from align.result import push, record, verify
from align.result.card import RunSummary
from support.results import recorded, rewrite, zero_b

work = Path(sys.argv[1])
summary = replace(RunSummary(**json.load(sys.stdin)), base_model="user/base", adapter=True)
recorded("user/base", work / "good/adapter", "adapter")
recorded("user/base", work / "newer/adapter", "adapter", temperature=0.9)
summary = replace(summary, record=record.fingerprint(work / "good/adapter"))
gate = {"measure": "reward", "at_least": 0.5, "value": 0.6}
newer = lambda folder: shutil.copytree(work / "newer/adapter", folder, dirs_exist_ok=True)
strays = ("secrets_config.json", "chat_template.jinja", "tokenizer_config.json", "generation_config.json", "vocab.json")
cases = {
    "good": (replace(summary, gate=gate), lambda folder: [(folder / name).write_text("{}") for name in strays]),
    "shut": (replace(summary, gate={**gate, "value": 0.4}), lambda folder: None),
    "replaced": (replace(summary, gate=gate), newer),
    "ungated": (summary, newer),
    "older": (replace(summary, gate=gate, record=None), lambda folder: None),
    "changed": (summary, lambda folder: (folder / "adapter_config.json").write_text(
        (folder / "adapter_config.json").read_text().replace('"lora_alpha": 32', '"lora_alpha": 64'))),
    "zero": (summary, lambda folder: rewrite(folder, zero_b)),
    "local": (replace(summary, base_model="runs/sft/model"), lambda folder: None),
    "unrecorded": (summary, lambda folder: (folder / "align.json").unlink()),
    "refused": (summary, lambda folder: None),
}
said = {}
for name, (what, spoil) in cases.items():
    run = work / name
    if name != "good":
        shutil.copytree(work / "good", run)
    push.store_summary(run, what)
    spoil(run / "adapter")
    repo = "stranger/refused" if name == "refused" else f"user/{name}"
    try:
        said[name] = push.push_run(run, repo, private=True)
    except push.NotPushed as error:
        said[name] = f"{type(error).__name__}: {error}"
said["verified"] = [check.passed for check in verify.verify("user/good")]
print(json.dumps(said))
"""


def test_what_is_pushed_and_what_is_not(tmp_path):
    base = tiny_model.save_model(tmp_path / "base")
    with hub_stub() as hub:
        hub.add("user/base", base)
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, str(tmp_path / "runs")],
            input=json.dumps(dataclasses.asdict(SUMMARY)),
            env=client_environment(hub, tmp_path / "home") | {"PYTHONPATH": PYTHONPATH},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        pushed = hub.files("user/good")
        assert set(hub.private) == {"user/base", "user/good"}  # nothing else was even created
        commit = hub.commit_id("user/base")
    assert said["good"] == f"{hub.url}/user/good" and said["verified"] == [True] * 7
    assert set(pushed) == {"README.md", "align.json", "adapter_config.json", "adapter_model.safetensors"}
    assert json.loads(pushed["align.json"])["base"]["commit"] == commit
    card = pushed["README.md"].decode()
    assert "## Verification" in card and "the base alone is off by" in card and str(tmp_path) not in card
    assert said["shut"].startswith("GateShut: not pushed: eval/reward is 0.4, and hub.gate asks for at least 0.5")
    for name in ("replaced", "ungated"):  # a newer adapter beside an older run's figures
        assert said[name].startswith("NotPushed: not pushed: the figures in ") and "--resume" in said[name]
    assert "does not say of which result the gate's measure is; end the run with --resume" in said["older"]
    assert said["changed"].startswith(
        "NotPushed: not pushed: description: adapter_config.json is not what was recorded"
    )
    assert said["zero"].startswith("NotPushed: not pushed: values: all zero")
    assert said["local"].startswith("NotPushed: not pushed: the adapter's base is the local path runs/sft/model")
    assert said["unrecorded"].startswith("NotPushed: not pushed: record: ")
    later = f"push it later by: python -m align push {tmp_path}/runs/refused stranger/refused"
    assert said["refused"].startswith("NotPushed: ") and later in said["refused"]
    assert "/runs/" in said["changed"] and not any(
        "staged" in text or "/tmp/tmp" in text for text in map(str, said.values())
    )
    for name in ("shut", "zero", "local", "unrecorded", "refused"):
        assert f"the result is in {tmp_path}/runs/{name}/adapter" in said[name]
        assert (tmp_path / f"runs/{name}/adapter/adapter_model.safetensors").is_file()


def test_the_gate_reads_the_last_evaluation():
    gate = Gate(measure="pairs/accuracy", at_least=0.6)
    measured = {"eval/pairs/accuracy": 0.7, "eval/pairs/margin": 1.0, "loss": 2.0}
    check_measure(gate, measured)
    assert reached(gate, measured) == {"measure": "pairs/accuracy", "at_least": 0.6, "value": 0.7}
    assert math.isnan(reached(gate, {})["value"])
    with pytest.raises(ValueError, match="nothing is called 'pairs/acuracy'; did you mean 'pairs/accuracy'"):
        check_measure(Gate(measure="pairs/acuracy", at_least=0.6), measured)
    with pytest.raises(ValueError, match="nothing is called 'loss'"):
        check_measure(Gate(measure="loss", at_least=0.6), measured)


@pytest.mark.parametrize("value", [0.49, math.nan])
def test_a_gate_that_stays_shut(tmp_path, value):
    summary = dataclasses.replace(SUMMARY, gate={"measure": "reward", "at_least": 0.5, "value": value})
    store_summary(tmp_path, summary)
    with pytest.raises(GateShut, match="asks for at least 0.5; the result is in .*adapter"):
        push_run(tmp_path, "user/name", private=True)


BROKEN = {
    "a list": "[]",
    "cut": '{"base_model": "x"',
    "too deep": "[" * 100_000,
    "no text": b"\xff",
    "another type": {"base_model": 3},
    "a gate that is none": {"gate": "x"},
    "a gate without numbers": {"gate": {"measure": "reward", "at_least": None, "value": 1}},
    "a gate with a text": {"gate": {"measure": "reward", "at_least": 0.5, "value": "nan"}},
    "a key too much": {"unknown": 1},
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_summary_that_was_edited_is_told(tmp_path, change):
    if isinstance(change, dict):
        change = json.dumps(dataclasses.asdict(SUMMARY) | change)
    (tmp_path / "summary.json").write_bytes(change if isinstance(change, bytes) else change.encode())
    with pytest.raises(NotPushed, match=r"not pushed: .*summary\.json.*resume"):
        push_run(tmp_path, "user/name", private=True)
