"""Ten steps of full fine-tuning side by side: TRL's GRPOTrainer (its transformers engine) and `align` with GRPO.

    python tests/bench/trl_grpo.py --json FILE

The same model, prompts, group size, token limit, learning rate and threads; float32 on CPU. Prints seconds a step
(median and spread over the steps after the first) and responses a second, and keeps the raw numbers.
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
STEPS, PROMPTS, GROUP, TOKENS, LR = 10, 8, 8, 24, 3e-5


def ours(out: Path) -> dict:
    """Seconds of each of our steps, all phases together."""
    arguments = {
        "model.adapter": "null",
        "objective": "{name: grpo}",
        "optim.lr": LR,
        "data.prompts_per_step": PROMPTS,
        "sampling.group_size": GROUP,
        "sampling.max_response_tokens": TOKENS,
        "run.steps": STEPS,
        "run.out": out,
        "run.eval_every": "null",
        "run.save_every": "null",
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "launch/cpu.yaml")]
    command += [str(ROOT / "recipes/train.py"), str(ROOT / "recipes/gfpo_chain_sum.yaml")]
    command += [f"{key}={value}" for key, value in arguments.items()]
    subprocess.run(command, check=True, cwd=ROOT)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    from align.loop import PHASES

    return {
        "seconds": [sum(row[f"seconds/{phase}"] for phase in PHASES) for row in rows],
        "phases": {phase: statistics.median(row[f"seconds/{phase}"] for row in rows[1:]) for phase in PHASES},
        "reward": [row["reward/mean"] for row in rows],
    }


def trl(out: Path) -> dict:
    """Seconds of each of TRL's steps."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from align import config, data, models

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    recipe = config.load(ROOT / "recipes/gfpo_chain_sum.yaml").recipe
    path = models.locate(recipe.model.policy)
    tokenizer = models.load_tokenizer(path)
    prompts = data.load(recipe.data, tokenizer, 0).train
    rows = Dataset.from_list([{"prompt": prompt.prompt, **prompt.columns} for prompt in prompts])
    from rewards.gym import correct

    stamps, rewards = [], []

    class Stamp(TrainerCallback):
        def on_step_begin(self, *_, **__):
            stamps.append(time.perf_counter())

        def on_log(self, args, state, control, logs=None, **_):
            if "reward" in (logs or {}):
                rewards.append(logs["reward"])

        def on_train_end(self, *_, **__):
            stamps.append(time.perf_counter())

    settings = GRPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=PROMPTS * GROUP // 2,
        gradient_accumulation_steps=2,
        num_generations=GROUP,
        max_completion_length=TOKENS,
        learning_rate=LR,
        lr_scheduler_type="constant",
        beta=0.0,
        max_steps=STEPS,
        logging_steps=1,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    trainer = GRPOTrainer(
        model=models.load_model(path, "float32").train(),
        reward_funcs=correct,
        args=settings,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[Stamp()],
    )
    trainer.train()
    return {"seconds": [b - a for a, b in zip(stamps, stamps[1:], strict=False)], "reward": rewards}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = {"ours": ours(Path(work) / "ours"), "trl": trl(Path(work) / "trl")}
    for side in found.values():
        later = side["seconds"][1:]
        side["median_s"] = statistics.median(later)
        side["spread_s"] = [min(later), max(later)]
        side["responses_per_s"] = PROMPTS * GROUP / side["median_s"]
    found["ratio"] = found["trl"]["median_s"] / found["ours"]["median_s"]
    wanted.json.write_text(json.dumps(found, indent=2) + "\n")
    for name in ("trl", "ours"):
        print(f"{name}: {found[name]['median_s']:.1f} s a step {found[name]['spread_s']}")
    print(f"ratio: {found['ratio']:.2f}")


if __name__ == "__main__":
    main()
