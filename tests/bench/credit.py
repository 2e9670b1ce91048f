"""What credit alone costs.

    python tests/bench/credit.py --json FILE [--metrics runs/gfpo_chain_sum/metrics.jsonl]

1. KTAE on one group of 16 responses, 10,000 tokens in all, vocabulary 151,665: ours against a port of the official
   code's structure (a loop over distinct tokens, one over the vocabulary, dense grids), which is also the oracle.
2. Every objective's chain on a batch of the quickstart's size (8 groups of 8, up to 24 tokens); with --metrics also
   as a share of the median step of that run.

Median and spread of 7 interleaved repeats, one thread.
"""

import argparse
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from align import objectives
from align.batch import Batch
from align.credit import assign
from align.loop import PHASES
from align.objectives.ktae import key_tokens
from align.transforms import best_and_worst

VOCABULARY, ROWS, TOKENS, REPEATS = 151_665, 16, 10_000, 7


def ktae_group() -> Batch:
    """Token ids by Zipf's law; every other response is correct."""
    generator = torch.Generator().manual_seed(0)
    weights = 1 / torch.arange(1, VOCABULARY + 1, dtype=torch.float64)
    rows = [
        torch.multinomial(weights, TOKENS // ROWS, replacement=True, generator=generator).tolist() for _ in range(ROWS)
    ]
    batch = Batch.of([0] * ROWS, rows, dtype=torch.float64)
    correct = torch.arange(ROWS) % 2 == 0
    return replace(batch, correct=correct, advantage=torch.zeros_like(batch.weight))


def official_structure(batch: Batch) -> torch.Tensor:
    """[B,T] keys, computed the way the official code goes about it."""
    C, W = int(batch.correct.sum()), int((~batch.correct).sum())
    present, times, lengths = [], [], []
    for rows in (batch.correct, ~batch.correct):
        ids, mask = batch.response_ids[rows], batch.mask[rows]
        row = torch.arange(len(ids))[:, None].expand_as(ids)[mask]
        tokens, inverse = torch.unique(ids[mask], return_inverse=True)
        having, count = torch.zeros(VOCABULARY + 1).double(), torch.zeros(VOCABULARY + 1).double()
        for i, token in enumerate(tokens):
            here = inverse == i
            having[token], count[token] = len(torch.unique(row[here])), here.sum()
        present.append(having)
        times.append(count)
        lengths.append(float(mask.sum()))
    table = torch.stack(
        [torch.tensor([a, b, C - a, W - b]) for a, b in zip(*(part.tolist() for part in present), strict=True)]
    ).double()
    a, b, c, d = table.unbind(1)
    k = torch.arange(min(C, W) + max(C, W) + 1).double()[None]

    def log_mass(x):
        m = (a + b)[:, None]
        inside = (x <= C) & (x <= m) & (x >= m - W)
        x = torch.where(inside, x, torch.minimum(m, torch.tensor(float(C))))
        choose = lambda n, r: torch.lgamma(n + 1) - torch.lgamma(r + 1) - torch.lgamma(n - r + 1)  # noqa: E731
        n = torch.tensor(float(C + W)).double()
        mass = (
            choose(torch.tensor(float(C)).double(), x) + choose(torch.tensor(float(W)).double(), m - x) - choose(n, m)
        )
        return torch.where(inside, mass, -torch.inf)

    masses, own = log_mass(k).exp(), log_mass(a[:, None]).exp()
    p = torch.where(masses <= own * (1 + 1e-7), masses, 0.0).sum(1).clamp(max=1)
    fisher = torch.where(p > 1 - 1e-9, 0.0, (-2 * p).exp())  # the official code tests p != 1 and misses most

    def entropy(x, y):
        total = (x + y).clamp(min=1)
        parts = torch.special.xlogy(x / total, x / total) + torch.special.xlogy(y / total, y / total)
        return -parts / math.log(2)

    n = C + W
    whole = entropy(torch.tensor(float(C)).double(), torch.tensor(float(W)).double())
    gain = whole - (a + b) / n * entropy(a, b) - (c + d) / n * entropy(c, d)
    average = sum(lengths) / 2
    saturated = []
    for count, length in zip(times, lengths, strict=True):
        frequency = count / length
        saturated.append(3 * frequency / (frequency + 2 * (0.5 + 0.5 * length / average)))
    direction = (a / C).sqrt().asin() - (b / W).sqrt().asin()
    direction = direction + saturated[0] / (saturated[1] + 1e-5) - saturated[1] / (saturated[0] + 1e-5)
    key = torch.tanh((fisher + gain) * direction / 2 / 2)
    return torch.where(batch.mask, key[batch.response_ids], 0.0)


def quickstart_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 25, (64,), generator=generator).tolist()
    rows = [torch.randint(0, 49_152, (n,), generator=generator).tolist() for n in lengths]
    batch = Batch.of([i // 8 for i in range(64)], rows)
    correct = torch.rand(64, generator=generator) > 0.5
    shape = batch.mask.shape
    return replace(
        batch,
        correct=correct,
        reward=correct.float(),
        truncated=torch.tensor([n == 24 for n in lengths]),
        entropy=torch.rand(shape, generator=generator),
        **{f"{who}_logprob": -torch.rand(shape, generator=generator) for who in ("old", "ref", "guide")},
        value=torch.rand(shape, generator=generator),
    )


CHAINS = {
    "grpo": objectives.grpo(),
    "gfpo": objectives.gfpo(k=4),
    "ktae": objectives.ktae(),
    "d3s": objectives.d3s(rows=4, share=0.5),
    "dapo": objectives.dapo(),
    "dr_grpo": objectives.dr_grpo(tokens_per_row=24),
    "gspo": objectives.gspo(),
    "cispo": objectives.cispo(),
    "rloo": objectives.rloo(),
    "reinforce": objectives.reinforce(),
    "nsr": objectives.nsr(),
    "psr": objectives.psr(),
    "w_reinforce": objectives.w_reinforce(),
    "grpo_n": objectives.grpo_n(),
    "ppo": objectives.ppo(),
    "rto": objectives.rto(),
    "best_and_worst": replace(objectives.dpo(), chain=(best_and_worst(),)),
}


def timed(calls: dict) -> dict[str, dict[str, float]]:
    """{name: median and spread in milliseconds} of interleaved repeats."""
    seconds = {name: [] for name in calls}
    for _ in range(REPEATS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"median_ms": 1e3 * statistics.median(s[1:]), "low_ms": 1e3 * min(s[1:]), "high_ms": 1e3 * max(s[1:])}
        for name, s in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--metrics", type=Path)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    group, transform = ktae_group(), key_tokens(special="count")
    found = timed({"ktae_ours": lambda: transform.apply(group), "ktae_official": lambda: official_structure(group)})
    found["ktae_ratio"] = found["ktae_official"]["median_ms"] / found["ktae_ours"]["median_ms"]
    found["ktae_largest_difference"] = float((transform.apply(group).advantage - official_structure(group)).abs().max())
    batch = quickstart_batch()
    chains = {name: lambda o=o: assign(o, batch, lambda batch, *_: batch) for name, o in CHAINS.items()}
    found["chains"] = timed(chains)
    if wanted.metrics:
        rows = [json.loads(line) for line in wanted.metrics.read_text().splitlines()]
        steps = [sum(row[f"seconds/{phase}"] for phase in PHASES) for row in rows if "loss" in row]
        for chain in found["chains"].values():
            chain["share_of_step"] = chain["median_ms"] / 1e3 / statistics.median(steps)
    wanted.json.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
