"""Part 5: vLLM beside a trainer: its threads, whether seeds repeat, how far its log-probabilities are from the
trainer's in bfloat16, and the seconds of a sync of whole weights and of an adapter. On a CPU a rehearsal."""

import tempfile
from pathlib import Path

import torch
from report import accelerator, device, main, say, timed
from support import tiny_model, tiny_task
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from align.batch import Batch
from align.config.experiment import load_experiment
from align.model import layouts
from align.model.adapters import add_adapter
from align.model.policy import Policy, read_tokens
from align.rollout.seeds import Draw, Seeds
from align.rollout.vllm_engine import VLLM
from align.system.hardware import here

SHAPES = {
    "cuda": dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=16, num_attention_heads=16, head_dim=64),
    "cpu": dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, head_dim=64),
}
DTYPES = {"cuda": "bfloat16", "cpu": "float32"}

CACHE = 2**29  # bytes of the engine's keys and values

PROMPTS = [[5 + i, 40, 41, 42] for i in range(16)]


def seeds_of(draw: int) -> Seeds:
    """The seeds of all prompts."""
    return Draw(draw, 0, 0).seeds(0, range(len(PROMPTS)))


def save(folder: Path) -> PreTrainedTokenizerFast:
    """A model with random weights and a tokenizer of characters."""
    tokens = tiny_model.tokenizer()
    torch.manual_seed(0)
    sizes = dict(vocab_size=128, num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.1)
    config = Qwen3Config(**sizes, **SHAPES[device()], eos_token_id=tokens.eos_token_id, bos_token_id=None)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return tokens


def measure(folder: Path, sync: str) -> None:
    """One engine with one way to sync."""
    where, dtype = device(), DTYPES[device()]
    recipe = folder / "recipe.yaml"
    recipe.write_text(tiny_task.RECIPE.format(folder=folder, adapter=", adapter: {rank: 16}", out=folder / "out"))
    wishes = [f"model.dtype={dtype}", f"sampling.sync={sync}", "sampling.temperature=1.0"]
    settings = load_experiment(recipe, wishes).recipe
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(where).eval()
    policy = Policy(add_adapter(model, settings.model.adapter, str(folder)), 1.0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    threads = torch.get_num_threads()
    made = []
    start = timed(lambda: made.append(VLLM(str(folder), settings, 1024, here(), CACHE)))
    engine = made[0]
    row = {"device": where, "sync": sync, "start_s": round(start, 1)}
    row |= {"threads_before": threads, "threads_after": torch.get_num_threads()}
    row["sync_s"] = round(min(timed(lambda: engine.sync(policy.model)) for _ in range(3)), 3)
    wish = dict(n=2, temperature=1.0, max_tokens=128)
    one, two, other = (engine.generate(PROMPTS, seeds=seeds_of(draw), **wish) for draw in (1, 1, 2))
    ids = [[sample.ids for group in each for sample in group] for each in (one, two, other)]
    row |= {"same_seed_same_tokens": ids[0] == ids[1], "other_seed_other_tokens": ids[0] != ids[2]}
    rows = [(i, sample) for i, group in enumerate(one) for sample in group]
    batch = Batch.of([i for i, _ in rows], [s.ids for _, s in rows], prompt_ids=[PROMPTS[i] for i, _ in rows])
    with torch.no_grad():
        trainer = read_tokens(policy, layouts.layout_on(where, "shared_prefix"), batch, batch.mask)[batch.mask]
    sampler = torch.tensor([value for _, sample in rows for value in sample.logprobs])
    gap = (trainer - sampler).abs()
    row |= {"tokens": len(gap), "mean_gap_nats": f"{gap.mean():.2e}", "largest_gap_nats": f"{gap.max():.2e}"}
    engine.close()
    say(**row)


def part() -> None:
    accelerator(0)  # the group of processes that the engine joins
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save(folder)
        for sync in ("merged", "adapter"):
            measure(folder, sync)


if __name__ == "__main__":
    main(part)
