"""Whole runs on pairs, offline and online, on a tiny model: stages, guide, bank, heads, several sources."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support.paths import PYTHONPATH, ROOT
from support.replays import assert_record_is_the_run_s
from support.zygote import forked
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.engine

OFFLINE = """
model: {{policy: {policy}{more}}}
data: {{pairs: "support.tiny_task:pairs", holdout: 4, prompts_per_step: 4{bank}}}
sampling: {{temperature: 0.7}}
objective: {objective}
optim: {{lr: {lr}, micro_batch_tokens: 200}}
run: {{steps: {steps}, eval_every: 2, out: "{out}"}}
"""
ONLINE = """
model: {{policy: "{folder}", adapter: {{rank: 4}}{guide}}}
data: {{prompts: "support.tiny_task:prompts", holdout: 4, prompts_per_step: 2}}
sampling: {{group_size: 4, temperature: 0.7, max_response_tokens: 8, cache_gib: 0.25, compile: false}}
rewards: {{"support.tiny_task:digits": 1.0}}
optim: {{lr: 0.003, micro_batch_tokens: 200}}
eval: {{samples: 2}}
run: {{steps: {steps}, eval_every: 10, out: "{out}"}}
"""
ADAPTER = ", adapter: {rank: 4}"


def train(machine: str, text: str, tmp_path: Path, name: str, *overrides: str) -> tuple[Path, list[dict]]:
    """The recipe's path and the metrics of its run, which writes to `tmp_path / name`."""
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text(text)
    forked(machine, ROOT / "recipes/train.py", recipe, *overrides)
    return recipe, [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]


def offline(tmp_path, name, policy, objective, more=ADAPTER, bank="", steps=2, lr=0.01):
    values = dict(policy=policy, objective=objective, more=more, bank=bank, steps=steps, lr=lr)
    return OFFLINE.format(**values, out=tmp_path / name)


def test_sft_then_dpo_then_tgdpo_with_and_without_a_bank(folder, tmp_path):
    """Three stages named by their recipes; the bank changes no loss and spares all passes."""
    sft, steps = train(
        "cpu", offline(tmp_path, "sft", f'"{folder}"', "{name: sft}", more="", steps=6, lr=0.001), tmp_path, "sft"
    )
    assert steps[-1]["eval/pairs/loss"] < steps[0]["eval/pairs/loss"]
    policy = f'{{from: "{sft}"}}'
    text = offline(tmp_path, "dpo", policy, "{name: dpo, beta: 1.0}", steps=6)
    dpo, steps = train("cpu", text, tmp_path, "dpo")
    assert steps[0]["eval/pairs/loss"] == pytest.approx(0.6931471805599453, abs=1e-6)
    assert steps[-1]["eval/pairs/accuracy"] > 0.5 and steps[-1]["eval/pairs/margin"] > 0
    more = f'{ADAPTER}, guide: {{from: "{dpo}"}}'
    bank = f', bank: "{tmp_path / "bank"}"'
    plain, without = train(
        "cpu", offline(tmp_path, "tgdpo", policy, "{name: tgdpo, alpha: 2.0}", more, steps=4), tmp_path, "tgdpo"
    )
    banked = tmp_path / "banked.yaml"
    banked.write_text(offline(tmp_path, "banked", policy, "{name: tgdpo, alpha: 2.0}", more, bank, steps=4))
    annotate = [sys.executable, "-m", "align", "annotate", str(banked)]
    environment = {"PYTHONPATH": PYTHONPATH}
    done = subprocess.run(annotate, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-3000:]
    _, with_bank = train("cpu_zero2", banked.read_text(), tmp_path, "banked")
    assert [row["step"] for row in without] == [row["step"] for row in with_bank]
    for one, two in zip(without, with_bank, strict=True):
        for name in set(one) & set(two):
            # what is 0 but for rounding has no sign yet
            if not name.startswith(("seconds/", "memory/", "pass/")) and "accuracy" not in name:
                assert one[name] == pytest.approx(two[name], rel=2e-3, abs=1e-5), name
    assert any(name.startswith("pass/guide_logprob") for row in without for name in row)
    assert not any(name.startswith("pass/") for row in with_bank for name in row)
    for name in ("sft", "dpo", "tgdpo", "banked"):
        assert_record_is_the_run_s(tmp_path / name)
    assert without[1]["factor_max"] > 1 and {p.name for p in (tmp_path / "tgdpo/adapter").iterdir()} >= {
        "adapter_model.safetensors"
    }
    assert not (tmp_path / "tgdpo/adapter/guide").exists()
    other = banked.read_text().replace("temperature: 0.7", "temperature: 0.8")
    (tmp_path / "other.yaml").write_text(other)
    with pytest.raises(AssertionError, match="temperature is another one now"):
        forked("cpu", ROOT / "recipes/train.py", tmp_path / "other.yaml")


def test_a_run_goes_on_from_the_adapter_of_another(folder, tmp_path):
    """Another objective, learning rate and steps; policy and reference start as that adapter, and so does vLLM."""
    sft, _ = train("cpu", offline(tmp_path, "sft", f'"{folder}"', "{name: sft}", steps=6), tmp_path, "sft")
    reward = '\nrewards: {"support.tiny_task:digits": 1.0}\nobjective: {name: dpo, beta: 1.0}\n'
    text = offline(tmp_path, "dpo", f'"{folder}"', "{name: dpo}", f', adapter: {{from: "{sft}"}}', steps=3, lr=0.001)
    text = text.replace("sampling: {", "sampling: {max_response_tokens: 8, compile: false, ")
    text = text.replace("\nobjective: {name: dpo}\n", reward)
    _, rows = train("cpu", text, tmp_path, "dpo")
    first = rows[0]
    assert first["step"] == 0 and first["eval/pairs/loss"] == pytest.approx(0.6931471805599453, abs=1e-6)
    assert rows[-1]["eval/pairs/margin"] > 0 and first["sync/gap"] < 1e-3
    verified = subprocess.run(
        [sys.executable, "-m", "align", "verify", str(tmp_path / "dpo"), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
    )
    assert json.loads(verified.stdout)["passed"], verified.stdout
    config = (tmp_path / "dpo/config.yaml").read_text()
    assert f"from: {tmp_path}/sft/adapter" in config and "rank: 4" in config
    card = (tmp_path / "dpo/adapter/README.md").read_text()
    assert "It goes on from the adapter" in card and "![Curve of the run](curve.png)" in card
    assert "## Sample answers" in card and "rewards/digits" in card


def test_every_preference_objective_learns_from_rollouts(folder, guide, tmp_path):
    """Twelve steps of one run: each is a term of its own over pairs of the same rollouts."""
    specs = "dpo: {}|ipo: {}|simpo: {}|tdpo1: {}|tdpo2: {}|tgdpo: {}|sparsepo: {}|mapo: {}|bonbon: {n: 4}|sft: {}"
    objectives = [f"  - {{{spec}, add: [{{best_and_worst: {{}}}}], weight: 0.1}}" for spec in specs.split("|")]
    text = ONLINE.format(folder=folder, guide=f', guide: "{guide}"', steps=12, out=tmp_path / "run")
    _, rows = train("cpu", text + "objectives:\n" + "\n".join(objectives) + "\n", tmp_path, "run")
    steps = [row for row in rows if "loss" in row]
    assert len(steps) == 12
    learned = [row for row in steps if row.get("grad_norm", 0) > 0]
    assert len(learned) >= 6  # groups without contrast give no pair
    for name in ("dpo", "ipo", "simpo", "tdpo1", "tdpo2", "tgdpo", "sparsepo", "mapo", "bonbon"):
        assert all(f"{name}/logit" in row for row in learned), name
    first = learned[0]
    for name in ("dpo", "tdpo1", "tdpo2", "tgdpo", "sparsepo", "mapo"):
        assert first[f"{name}/logit"] == pytest.approx(0.0, abs=1e-5), name  # policy = reference: ln 2
    assert any(row["eval/kl_k1_policy_ref"] > 0.01 for row in rows if "eval/kl_k1_policy_ref" in row)
    assert (tmp_path / "run/adapter/adapter_model.safetensors").is_file()
    assert_record_is_the_run_s(tmp_path / "run")


@pytest.mark.parametrize("machine", ["cpu_zero2", "cpu_zero3"])
def test_rollouts_and_pairs_in_one_step_with_heads(machine, folder, guide, tmp_path):
    text = ONLINE.format(folder=folder, guide=f', guide: "{guide}"', steps=2, out=tmp_path / "run")
    text = text.replace(
        'data: {prompts: "support.tiny_task:prompts", holdout: 4, prompts_per_step: 2}',
        'data: {online: {prompts: "support.tiny_task:prompts", holdout: 4, prompts_per_step: 2},'
        ' offline: {pairs: "support.tiny_task:pairs", prompts_per_step: 3}}',
    )
    objectives = """objectives:
  - {rto: {value_lr: 0.01}, data: online}
  - {sparsepo: {}, data: offline, weight: 0.5}
"""
    _, rows = train(machine, text + objectives, tmp_path, "run")
    steps = [row for row in rows if "loss" in row]
    assert len(steps) == 2 and all(row["grad_norm"] > 0 for row in steps)
    assert all({"rto/ratio", "rto/value", "sparsepo/logit", "sparsepo/mask/reward"} <= set(row) for row in steps)
    shipped = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    assert all("lora_" in name for name in shipped)
    assert_record_is_the_run_s(tmp_path / "run")


def test_four_steps_of_masks_are_two_and_two_resumed(folder, tmp_path):
    """The mask network is saved and resumed with the policy, and left out of what is shipped."""
    objective = "{name: sparsepo, masks: independent, l1_reward: 0.01}"

    def run(name, *overrides):
        text = offline(tmp_path, name, f'"{folder}"', objective, steps=4)
        return train("cpu", text, tmp_path, name, "optim.schedule_steps=4", *overrides)[1]

    whole = run("whole")
    run("parts", "run.steps=2")
    resumed = run("parts", f"run.resume={tmp_path / 'parts'}")
    machine = ("seconds/", "memory/")
    one, two = (
        [{k: v for k, v in row.items() if not k.startswith(machine)} for row in rows] for rows in (whole, resumed)
    )
    assert one == two and whole[-1]["step"] == 4
    assert_record_is_the_run_s(tmp_path / "parts")
    assert whole[-1]["eval/pairs/mask/reward"] != whole[0]["eval/pairs/mask/reward"]
    base = AutoModelForCausalLM.from_pretrained(folder)
    probe = torch.arange(3, 40)[None]
    before = base(probe).logits
    assert (PeftModel.from_pretrained(base, tmp_path / "whole/adapter")(probe).logits - before).abs().max() > 1e-3
