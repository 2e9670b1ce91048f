"""A worker of `step`, in a process of its own: whole steps of the quickstart, one each time the parent asks.

    steps.py our_loop|trl_loop SOCKET SETTINGS_JSON        (ours through accelerate launch)

The learning rate is next to nothing on both sides, so that neither's responses get shorter on the way.
"""

import json
import os
import sys
import time
from multiprocessing.connection import Client, Connection
from pathlib import Path

import torch

from align.check.check import check_run
from align.config.experiment import load_experiment
from align.data.read import load_prompts
from align.model.load import load_model, load_tokenizer
from align.model.locate import locate

RECIPE = Path(__file__).parents[2] / "recipes/gfpo_chain_sum.yaml"
LR = 1e-9


def ours(parent: Connection, folder: str) -> None:
    """Steps of the recipe as it is shipped: GFPO, which trains 6 of each 8 responses."""
    from align.checkpoint.resume import Origin
    from align.run.processes import make_accelerator, set_threads
    from align.run.setup import load

    set_threads()
    experiment = load_experiment(
        RECIPE, [f"optim.lr={LR}", "optim.schedule=constant", "data.holdout=0", f"run.out={folder}"]
    )
    accelerator = make_accelerator(experiment)
    run = load(check_run(experiment, accelerator), Origin(), accelerator)
    parent.send("ready")
    step = 0
    while parent.recv() != "end":
        start = time.perf_counter()
        metrics = run.loop.step(step).metrics
        seconds = time.perf_counter() - start
        phases = {
            name.removeprefix("seconds/"): value for name, value in metrics.items() if name.startswith("seconds/")
        }
        parent.send({"seconds": seconds, "tokens": metrics["tokens/generated"], "phases": phases})
        step += 1
    run.close()


def trl(parent: Connection, folder: str, rows: int) -> None:
    """GRPOTrainer on the same prompts, adapter, group size and token limit, with its transformers engine; it updates
    `rows` at once."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rewards.gym import correct

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    recipe = load_experiment(RECIPE, ["data.holdout=0"]).recipe
    path = locate(recipe.model.policy)
    tokenizer = load_tokenizer(path)
    prompts = load_prompts(recipe.data, tokenizer, 0).train
    adapter, size = recipe.model.adapter, recipe.sampling.group_size
    settings = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=recipe.data.prompts_per_step * size // rows,
        num_generations=size,
        max_completion_length=recipe.sampling.max_response_tokens,
        learning_rate=LR,
        lr_scheduler_type="constant",
        beta=0.0,
        max_steps=10**6,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )

    class Asked(TrainerCallback):
        """Waits for the parent before each step, and tells it the seconds after it."""

        def on_train_begin(self, *_, **__):
            parent.send("ready")

        def on_step_begin(self, args, state, control, **_):
            if parent.recv() == "end":
                parent.close()
                os._exit(0)  # the trainer has no other way out of a step
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            parent.send({"seconds": time.perf_counter() - self.start})

    GRPOTrainer(
        model=load_model(path, "float32").train(),
        reward_funcs=correct,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": prompt.prompt, **prompt.columns} for prompt in prompts]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=adapter.rank, lora_alpha=adapter.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Asked()],
    ).train()


def main() -> None:
    kind, socket, settings = sys.argv[1:]
    settings = json.loads(settings)
    with Client(socket) as parent:
        if kind == "our_loop":
            ours(parent, settings["folder"])
        else:
            trl(parent, settings["folder"], settings["rows"])


if __name__ == "__main__":
    main()
