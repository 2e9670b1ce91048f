"""Part 3: updates of a model with the shape of Qwen3-8B and random weights, LoRA, ZeRO-2, over packed rows: tokens a
second, the share of the GPU's arithmetic, and the peak of memory beside what `check` estimates. On a CPU, by
`python tests/gpu/training.py`, a tiny shape to rehearse the program."""

import gc
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from report import accelerator, device, main, say, settled, timed
from transformers import AutoModelForCausalLM, Qwen3Config

from align import objectives
from align.batch import Batch
from align.check import memory
from align.check.sizes import sizes_of
from align.config.model_keys import Adapter
from align.config.optim_keys import Optim
from align.credit import assign
from align.learner.learner import Learner
from align.learner.optimizer import configure
from align.learner.passes import ForwardPasses
from align.model import layouts
from align.model.adapters import add_adapter
from align.model.policy import Policy
from align.system.clock import Clock
from align.system.hardware import here

sys.path.append(str(Path(__file__).parents[1] / "bench"))

import flops  # noqa: E402

GIB = 2**30


@dataclass(frozen=True)
class Case:
    """Tokens of one micro-batch, and whether layers are computed again in the backward pass."""

    tokens: int
    again: bool


QWEN3_8B = dict(
    hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8
)
TINY = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
SHAPES = {
    "cuda": dict(vocab_size=151936, head_dim=128, max_position_embeddings=40960, **QWEN3_8B),
    "cpu": dict(vocab_size=512, head_dim=16, max_position_embeddings=4096, **TINY),
}
CASES = {
    "cuda": [Case(n, again) for again in (True, False) for n in (4096, 16384, 32768)],
    "cpu": [Case(512, again) for again in (True, False)],
}


def rollouts(tokens: int, vocabulary: int) -> Batch:
    """Groups of eight responses, an eighth of the tokens a prompt, together about `tokens` packed."""
    draw, groups = torch.Generator().manual_seed(0), max(1, tokens // 8192)
    prompt, response = tokens // groups // 8, tokens // groups * 7 // 64

    def ids(n: int) -> list[int]:
        return torch.randint(1, vocabulary, (n,), generator=draw).tolist()

    prompts, group = [ids(prompt) for _ in range(groups)], [i // 8 for i in range(8 * groups)]
    answers = [ids(response) for _ in group]
    reward = torch.rand(len(group), generator=draw)
    text = [["."] * len(answer) for answer in answers]
    return Batch.of(group, answers, prompt_ids=[prompts[g] for g in group], token_text=text, reward=reward)


def model(place: str) -> torch.nn.Module:
    """Random weights in bfloat16, made where they stay, with an adapter."""
    config = Qwen3Config(tie_word_embeddings=False, **SHAPES[device()])
    with torch.device(place):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        return add_adapter(made.eval(), Adapter(), "random")


def optim(case: Case) -> Optim:
    """Everything in one micro-batch."""
    return Optim(lr=1e-9, micro_batch_tokens=10**9, schedule_steps=10**6, checkpoint_activations=case.again)


def estimate(positions: int, case: Case) -> float:
    """GiB that `check` estimates for an update of so many positions, without what CUDA takes beside torch."""
    skeleton = model("meta")
    setup = memory.Setup(
        policy=sizes_of(skeleton, [], skeleton.config, 2),
        gpu_gib=here().gib,
        processes=1,
        zero_stage=2,
        width=2,
        moments=2,
        frozen=0,
        reference=0,
        tokens=positions,
        row=positions,
        micro_batch=positions,
        sampler=None,
        checkpointed=case.again,
    )
    return memory.phases(setup)["update"]["total"] - memory.CONTEXT


def measure(learner: Learner, case: Case, peak: float) -> dict:
    """One update after a first that compiles."""
    policy, batch = learner.engine.module, rollouts(case.tokens, learner.model.config.vocab_size)
    said = learner.score(batch, batch.kept)["logprob"]
    annotate = ForwardPasses(learner, "sampler", Clock()).for_batch()
    credited = assign(objectives.grpo(), replace(batch, sampler_logprob=said), annotate)
    first = timed(lambda: learner.update(learner.plan([[credited]]), 0))
    if device() == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = settled()
    found = learner.update(learner.plan([[credited]]), 1)
    seconds = settled() - start
    inputs = learner.layout.inputs(batch, credited.trained)
    expected = round(estimate(inputs.input_ids.numel(), case), 2)
    return {
        "positions": inputs.input_ids.numel(),
        "first_s": round(first, 2),
        "seconds": round(seconds, 3),
        "tokens_per_s": round(inputs.input_ids.numel() / seconds),
        "mfu": round(flops.useful(policy, inputs) / seconds / peak, 3) if device() == "cuda" else None,
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2) if device() == "cuda" else None,
        "estimated_gib": expected,
        "grad_norm": found["grad_norm"],
    }


def products() -> float:
    """Operations a second of large matrix products in bfloat16."""
    size = 8192 if device() == "cuda" else 512
    a = torch.randn(size, size, device=device(), dtype=torch.bfloat16)
    a @ a
    return 2 * size**3 / min(timed(lambda: a @ a) for _ in range(5))


def part() -> None:
    where, peak = device(), products()
    say(what="matrix products", device=where, tflops=round(peak / 1e12, 3))
    prepared = accelerator(2)
    policy = Policy(model(where), 1.0)
    for again in (True, False):
        cases = [case for case in CASES[where] if case.again is again]
        if not again:  # what computes layers again stays on a model
            policy = None
            gc.collect()
            policy = Policy(model(where), 1.0)
        layout = layouts.layout_on(where, "shared_prefix")
        configure(prepared, optim(cases[0]), "bfloat16")
        learner = Learner(prepared, policy, layout, optim(cases[0]))
        for case in cases:
            row = {"device": where, "tokens": case.tokens, "again": again}
            try:
                say(**row, **measure(learner, case, peak))
            except torch.OutOfMemoryError as error:
                say(**row, out_of_memory=str(error).splitlines()[0])
                learner.engine.zero_grad()
        learner = None
        prepared.free_memory()


if __name__ == "__main__":
    main(part)
