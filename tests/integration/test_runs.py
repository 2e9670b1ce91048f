"""Whole runs of the shipped recipe on a tiny model: real vLLM, real DeepSpeed, through `accelerate launch`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support.hub_server import client_environment, hub_stub
from support.launch import heed_ctrl_c, launch
from support.paths import ROOT
from support.replays import assert_record_is_the_run_s
from support.zygote import forked
from transformers import AutoModelForCausalLM

from align.run.environment import LAUNCHED, QUIET

pytestmark = pytest.mark.engine
SMALL = """
data.args.size=24 data.holdout=4 data.prompts_per_step=4 sampling.group_size=4 objective.k=3
sampling.max_response_tokens=10 sampling.compile=false sampling.cache_gib=0.25 eval.samples=2 eval.pass_at=[1,2]
optim.lr=0.02 optim.micro_batch_tokens=400
"""
# the reward of a random model is 0 everywhere: short answers are something that it can learn
REWARDS = 'rewards=[{fn: "rewards.gym:correct"}, {fn: "rewards.length:length_penalty", args: {per_token: 0.1}}]'


def train(
    machine: str, recipe: str, policy: Path | str, out: Path, *overrides: str, start=forked, **variables: str
) -> list[dict]:
    """The metrics of a run of a shipped recipe."""
    arguments = [f"model.policy={policy}", f"run.out={out}", *SMALL.split(), REWARDS, *overrides]
    start(machine, ROOT / "recipes/train.py", ROOT / "recipes" / f"{recipe}.yaml", *arguments, **variables)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def timeless(metrics: list[dict]) -> list[dict]:
    """What was measured, apart from time and memory."""
    machine = ("seconds/", "memory/")
    return [{name: value for name, value in row.items() if not name.startswith(machine)} for row in metrics]


@pytest.mark.parametrize("machine", ["cpu_zero2", "cpu_zero3"])
def test_the_same_recipe_runs_on_two_ranks(machine, folder, tmp_path):
    goal = "hub={repo: user/tiny, gate: {measure: reward, at_least: -9}}"
    overrides = ("run.steps=2", "run.trackers=[tensorboard]", goal)
    with hub_stub() as hub:
        hub.add("user/base", folder)
        client = {name: value for name, value in client_environment(hub, tmp_path).items() if name[:2] in ("HF", "NO")}
        metrics = train(machine, "gfpo_chain_sum", "user/base", tmp_path / "run", *overrides, start=launch, **client)
        pushed = hub.files("user/tiny")
    steps = [row for row in metrics if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert row["signal/carrying"] > 0 and row["grad_norm"] > 0
        assert row["signal/generated"] == row["signal/carrying"] + sum(
            value for name, value in row.items() if name.startswith("signal/taken/")
        )
    base = AutoModelForCausalLM.from_pretrained(folder)
    probe = torch.arange(3, 40)[None]
    before = base(probe).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "run/adapter")
    assert (adapted(probe).logits - before).abs().max() > 1e-3
    assert pushed["adapter_model.safetensors"] == (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes()
    card = pushed["README.md"].decode()
    assert f"accelerate launch --config_file {machine}.yaml" in card  # of local paths the last name only
    assert "gfpo" in card and str(tmp_path) not in card
    for section in ("## Gate", "## Verification", "| data | training | 20 | `", "| data | held out | 4 | `"):
        assert section in card
    gap, alone = (float(re.search(words + r" (\d\S*)", card)[1]) for words in ("largest gap", "off by"))
    assert gap < 1e-4 < 1e-2 < alone  # nats, of what both ranks said of the probes and a fresh process says
    said = json.loads(pushed["align.json"])
    assert said["base"]["name"] == "user/base" and said["base"]["commit"] == hub.commit_id("user/base")
    assert (tmp_path / "run/curve.png").stat().st_size > 1000
    assert "default-src" in (tmp_path / "run/xray.html").read_text()
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_a_composed_chain_with_dynamic_sampling_on_two_ranks(folder, tmp_path):
    """GFPO x D3S x KTAE x DAPO: entropies come from one pass over the rows that are left."""
    chain = """objective={chain: [{keep_top: {k: 3}}, {group_advantage: {}}, {max_variance_rows: {rows: 2}},
      {key_tokens: {weight: 0.5}}, {mask_truncated: {}}, {top_tokens: {share: {start: 0.5, end: 1.0}}}],
      loss: {clipped_surrogate: {clip_high: 0.28, denominator: selected}}}"""
    short = "correct={reward: length_penalty, at_least: -0.95}"  # a random model ends early now and then
    more = ("sampling.dynamic_sampling={rounds: 3}", "sampling.group_size=6", "data.prompts_per_step=2", "run.steps=2")
    metrics = train("cpu_zero2", "gfpo_chain_sum", folder, tmp_path / "run", chain, short, *more)
    steps = [row for row in metrics if "loss" in row]
    assert len(steps) == 2 and sum(row["signal/carrying"] for row in steps) > 0
    for row in steps:
        taken = {name: value for name, value in row.items() if name.startswith("signal/taken/")}
        assert row["signal/generated"] == row["signal/carrying"] + sum(taken.values())
        assert row["pass/entropy/rows"] <= 4  # two rows a group at most, of two groups
    assert_record_is_the_run_s(tmp_path / "run")


ADAPTIVE = "objective.k={very_hard: 4, hard: 4, medium: 3, easy: 2, warmup_prompts: 3}"


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The folder of a run of four steps, started by `accelerate launch`."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train("cpu", "gfpo_chain_sum", folder, out, ADAPTIVE, "run.steps=4", "run.eval_every=1", start=launch)
    return out


def assert_same(one: Path, two: Path) -> None:
    """Two runs of four steps are the same to the bit."""
    metrics = [timeless([json.loads(line) for line in (run / "metrics.jsonl").open()]) for run in (one, two)]
    assert metrics[0] == metrics[1]
    assert len([row for row in metrics[0] if "loss" in row]) == 4
    tensors = [load_file(run / "adapter/adapter_model.safetensors") for run in (one, two)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0] | tensors[1])
    assert max(float(value.abs().max()) for name, value in tensors[0].items() if "lora_B" in name) > 0.01
    states = [json.loads((run / "checkpoints/step_4/state.json").read_text()) for run in (one, two)]
    assert all(state.pop("recipe")["run"]["steps"] == 4 for state in states)  # they may save at other steps
    assert states[0] == states[1] and len(states[0]["links"][0]["seen"]) == 16
    assert (one / "samples.jsonl").read_text() == (two / "samples.jsonl").read_text()


def test_the_record_of_a_run_gives_its_credit_to_the_last_digit(whole):
    """k follows the difficulty of earlier steps."""
    rows = assert_record_is_the_run_s(whole)
    assert any("logprob" in row for row in rows) and all("token_text" in row for row in rows)
    assert sum(row["objectives"][0].get("state") is not None for row in rows) == 1


def test_four_steps_are_two_and_two_resumed_bit_for_bit(whole, folder, tmp_path):
    parts = tmp_path / "parts"
    train("cpu", "gfpo_chain_sum", folder, parts, ADAPTIVE, "run.steps=2", "run.eval_every=1")
    train("cpu", "gfpo_chain_sum", folder, parts, ADAPTIVE, "run.steps=4", "run.eval_every=1", f"run.resume={parts}")
    assert_same(whole, parts)


def test_an_adapter_evaluated_alone_has_what_its_run_measured(whole, folder, tmp_path):
    words = [f"model.policy={folder}", f"run.out={tmp_path / 'out'}", *SMALL.split(), REWARDS, ADAPTIVE, "run.steps=4"]
    words += ["--adapter", str(whole / "adapter"), "--json"]
    command = [sys.executable, "-m", "align", "evaluate", str(ROOT / "recipes/gfpo_chain_sum.yaml"), *words]
    known = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    known["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, cwd=tmp_path, env=known, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    last = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()][-1]
    measured = {name.removeprefix("eval/"): value for name, value in last.items() if name.startswith("eval/")}
    assert {name: found["metrics"][name] for name in measured} == pytest.approx(measured, abs=1e-6)
    greedy = [json.loads(line) for line in (whole / "greedy.jsonl").read_text().splitlines()]
    assert [sample["response"] for sample in found["samples"]] == [
        row["response"] for row in greedy if row["step"] == 4
    ]
    assert set(found["samples"][0]["rewards"]) == {"correct", "length_penalty"}
    assert not (tmp_path / "out").exists()


START = r"""one process, as with launch/cpu.yaml; for several: accelerate launch .*
libraries \d+\.\d s
DeepSpeed \d+\.\d s  \(compiles at the first start\)
check \d+\.\d s
models \d+\.\d s
engine \d+\.\d s
sampler check \d+\.\d s
first evaluation \d+\.\d s  reward -\d\.\d{3} \[-\d\.\d{3}, -\d\.\d{3}\]  length \d+\.\d
step 1/4  reward -\d\.\d\d  length \d+\.\d  \d+\.\d s a step  \d+ s left
evaluation at step 1  reward -\d\.\d{3} \[-\d\.\d{3}, -\d\.\d{3}\]  length \d+\.\d  \d+\.\d s
"""


def test_a_run_without_a_launcher_that_ctrl_c_interrupts(whole, folder, tmp_path):
    """All lines are its own, one tells how to go on, and what it then ends with is what a launched run ends with."""
    out, said = tmp_path / "run", tmp_path / "log"
    known = {name: value for name, value in os.environ.items() if name not in (*QUIET, *LAUNCHED, "ALIGN_VERBOSE")}
    words = [f"model.policy={folder}", f"run.out={out}", *SMALL.split(), REWARDS, ADAPTIVE]
    words += ["run.steps=4", "run.eval_every=1", "run.save_every=1"]
    command = [sys.executable, ROOT / "recipes/train.py", ROOT / "recipes/gfpo_chain_sum.yaml", *words]
    started = dict(cwd=tmp_path, env={**known, "PYTHONPATH": str(ROOT)}, stderr=subprocess.STDOUT, text=True)
    started["preexec_fn"] = heed_ctrl_c
    with said.open("w") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, **started)
        until = time.monotonic() + 300
        while "evaluation at step 2" not in said.read_text():
            assert process.poll() is None and time.monotonic() < until, said.read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    first, end = said.read_text().partition("interrupted")[::2]
    assert re.match(START, first), first
    assert all(line.startswith(("step ", "evaluation at step ")) for line in first.splitlines()[8:]), first
    assert end.startswith("; go on with the same command and --resume") and end.count("\n") == 1
    assert not (out / "adapter").exists()
    done = subprocess.run([*map(str, command), "--resume"], stdout=subprocess.PIPE, timeout=300, **started)
    assert done.returncode == 0 and re.search(r"resume: .*/step_[12]: [12] steps done", done.stdout), done.stdout
    assert_same(whole, out)
    card = (out / "adapter/README.md").read_text()
    assert "trained with `align`: objective gfpo, 4 steps" in card and str(tmp_path) not in card
