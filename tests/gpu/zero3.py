"""Part 4: ZeRO-3 in bfloat16: the types that layers compute in, how often the head runs, and hence is gathered, and how
far several micro-batches move the gradient from that of one. On a CPU a rehearsal."""

from dataclasses import replace

import torch
from report import accelerator, device, main, say
from training import rollouts
from transformers import AutoModelForCausalLM, Qwen3Config

from align import objectives
from align.config.optim_keys import Optim
from align.credit import assign
from align.learner.learner import Learner
from align.learner.optimizer import configure
from align.learner.passes import ForwardPasses
from align.model import layouts
from align.model.policy import Policy
from align.system.clock import Clock

SHAPES = {
    "cuda": dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=8, num_attention_heads=16, head_dim=64),
    "cpu": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, head_dim=16),
}
TOKENS = {"cuda": 8192, "cpu": 600}


def counted(module: torch.nn.Module, counts: dict) -> None:
    """Count the runs of a module and note the types of what it gives."""

    def note(module, given, made) -> None:
        counts["runs"] = counts.get("runs", 0) + 1
        if isinstance(made, torch.Tensor):
            counts["dtype"] = str(made.dtype).removeprefix("torch.")

    module.register_forward_hook(note)


def part() -> None:
    where, prepared = device(), accelerator(3)
    config = Qwen3Config(vocab_size=4096, num_key_value_heads=2, max_position_embeddings=8192, **SHAPES[where])
    optim = Optim(lr=1e-9, optimizer="sgd", micro_batch_tokens=10**9, schedule_steps=10**6, max_grad_norm=float("inf"))
    configure(prepared, optim, "bfloat16")
    torch.manual_seed(0)
    policy = Policy(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval(), 1.0)
    learner = Learner(prepared, policy, layouts.layout_on(where, "shared_prefix"), optim)
    head, layer = {}, {}
    counted(policy.window, head)
    counted(policy.causal.get_decoder().layers[0].mlp, layer)
    batch = rollouts(TOKENS[where], 4096)
    said = learner.score(batch, batch.kept)["logprob"]
    annotate = ForwardPasses(learner, "sampler", Clock()).for_batch()
    credited = assign(objectives.grpo(), replace(batch, sampler_logprob=said), annotate)
    norms = {}
    for tokens in (10**9, TOKENS[where] // 8):
        learner.optim = optim.model_copy(update={"micro_batch_tokens": tokens})
        head.clear()
        norms[tokens] = learner.update(learner.plan([[credited]]), 0)["grad_norm"]
        micros = len(learner.plan([[credited]]).micros)
        say(
            device=where,
            micro_batches=micros,
            layers_compute_in=layer["dtype"],
            weights_in=str(next(policy.parameters()).dtype).removeprefix("torch."),
            head_runs=head["runs"],
            grad_norm=norms[tokens],
        )
    one, several = norms.values()
    say(device=where, gap_of_gradient_norms=f"{abs(one - several) / one:.2e}")


if __name__ == "__main__":
    main(part)
