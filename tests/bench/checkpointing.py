"""What activation checkpointing saves and costs: one update in a fresh process, layers kept and computed again.

    python tests/bench/checkpointing.py [layers=8] [width=512] [tokens=8192]

A random Llama on a CPU in float32, full fine-tuning with plain SGD, one micro-batch of rows of 512 tokens. Prints one
JSON object a run: the process's peak above the loaded model in MiB, seconds, and the estimate of `check` for the
activations.
"""

import json
import multiprocessing
import os
import resource
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from align.batch import Batch
from align.check.sizes import kept_per_token
from align.model import layouts
from align.model.policy import Policy
from align.model.recompute import recompute_layers

ROW = 512  # tokens


def peak() -> float:
    """MiB: the most that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def update(kind: str, layers: int, width: int, tokens: int, pipe) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.device("meta"):
        whole = kept_per_token(LlamaForCausalLM(config))
    policy = Policy(model, 1.0)
    if kind == "recompute":
        recompute_layers(model)
    rows = torch.randint(3, 1000, (tokens // ROW, ROW)).tolist()
    batch = Batch.of([*range(len(rows))], [row[8:] for row in rows], prompt_ids=[row[:8] for row in rows])
    inputs = layouts.padded.inputs(batch, batch.mask)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # held in both
    before, start = peak(), time.perf_counter()
    policy(inputs)["logprob"].mean().backward()
    optimizer.step()
    seconds = time.perf_counter() - start
    kept = whole if kind == "keep" else layers * width * 4 + whole / layers
    digest = sum(p.detach().double().sum().item() for p in model.parameters())
    pipe.send(
        {
            "layers": kind,
            "peak_mib": round(peak() - before),
            "estimate_mib": round(tokens * kept / 2**20),
            "seconds": round(seconds, 1),
            "sum of the weights after it": digest,
        }
    )


def main(*arguments: str) -> None:
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)  # of the processes below: what is freed goes back at once
    given = {"layers": 8, "width": 512, "tokens": 8192}
    given |= {key: int(value) for key, value in (argument.split("=") for argument in arguments)}
    fresh = multiprocessing.get_context("spawn")
    for kind in ("keep", "recompute"):
        ours, theirs = fresh.Pipe()
        process = fresh.Process(target=update, args=(kind, *given.values(), theirs))
        process.start()
        print(json.dumps({**given, **ours.recv()}), flush=True)
        process.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
