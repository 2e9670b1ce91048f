"""What it costs to bring a step's rollouts together, and to give them credit: before ranks credited their own groups,
and since.

    python tests/bench/batch.py --json FILE [--ranks 1 2 8] [--sizes quickstart long]

Made-up rollouts, GFPO's chain (scope `group`) and D3S's (scope `batch`), through processes that talk over gloo. Before:
rollouts as pickled lists go to every rank, each makes the whole batch with the text of each token and credits all of
it, and the lines of samples.jsonl are written before the next step. Since: each rank tells numbers of its rollouts,
credits its own groups, rows go where the plan of micro-batches sends them, and the lines are written beside.

Sizes: the quickstart's batch (8 groups of 8, up to 24 tokens) 1, 4 and 16 times, and 64 groups of 16 of up to 500
tokens once and 4 times. Seconds are those of a rank's own core (`process_time`), the dearest rank's, so that more ranks
than cores measure the same but for what they wait for each other. `held` is a rank's high-water mark over what it held
with its rollouts as lists, per token of all.
"""

import argparse
import json
import os
import pickle
import random
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object

sys.path.insert(0, str(Path(__file__).parents[1]))
from support import smollm2
from support.ranks import on_ranks

from align import objectives
from align.batch import Batch, pad
from align.credit import assign
from align.data.prompts import Prompt, Response, turn_numbers
from align.data.turns import turn_columns
from align.learner import moves
from align.learner.losses import trained_of
from align.model import layouts
from align.ranks import exchange
from align.rollout import rollouts, tensors
from align.rollout.rollouts import Rollout
from align.rollout.sources import Collected, SourceBatch
from align.rollout.token_text import token_texts
from align.run.samples import Record
from align.run.together import on_main
from align.system.clock import Clock

SIZES = {
    "quickstart": (8, 8, 24),
    "4 times": (32, 8, 24),
    "16 times": (128, 8, 24),
    "long": (64, 16, 500),
    "4 times long": (256, 16, 500),
}
OBJECTIVES = {"gfpo": lambda: objectives.gfpo(k=6), "d3s": lambda: objectives.d3s(rows=4, share=0.5)}
REPEATS = 3


def sampled(groups: int, size: int, longest: int) -> list[Rollout]:
    """This rank's rollouts."""
    rank, count = exchange.place()
    out = []
    for group in range(rank, groups, count):
        draw = random.Random(group)
        prompt = Prompt([draw.randrange(49_152) for _ in range(60)], "x" * 200, "x" * 180, {"answer": "7"})
        for index in range(size):
            ids = [draw.randrange(3, 49_152) for _ in range(draw.randint(longest // 2, longest))]
            response = Response(ids, [float(torch.tensor(-3 * draw.random())) for _ in ids], False)
            right = draw.random() > 0.5
            out.append(Rollout(group, index, prompt, response, "word " * len(ids), {"r": 1.0}, float(right), right))
    return out


def batch_before(found: list[Rollout], tokenizer) -> Batch:
    """The whole batch, as it was made of lists."""
    ids = [one.response.ids for one in found]
    turns = [one.response.turns for one in found]
    numbers = [turn_numbers(len(row), of_row) for row, of_row in zip(ids, turns, strict=True)]
    special = set(tokenizer.all_special_ids)
    return Batch.of(
        [one.group for one in found],
        ids,
        prompt_ids=[one.prompt.ids for one in found],
        special=pad([[token in special for token in row] for row in ids], torch.bool),
        token_text=token_texts(ids, tokenizer),
        turns=numbers,
        **turn_columns(ids, numbers, turns),
        reward=torch.tensor([one.reward for one in found]),
        correct=torch.tensor([one.correct for one in found]),
        truncated=torch.tensor([one.response.truncated for one in found]),
        sampler_logprob=pad([one.response.logprobs for one in found], torch.float32),
    )


def annotate(batch, names, rows, reader):
    """Entropies from nowhere, and old log-probabilities of the sampler."""
    return replace(batch, old_logprob=batch.sampler_logprob, entropy=-batch.sampler_logprob)


def plan(batch, credited, clock):
    """The micro-batches of this rank."""
    with clock("plan"):
        trained, limits = trained_of([credited]), {"tokens": 32_768, "layout": layouts.shared_prefix, "quadratic": 1e-4}
        return moves.route(batch, trained, trained.any(1), credited.coupled, exchange.place(), **limits)


def before(mine, objective, tokenizer, clock):
    """{what: bytes that this rank gave}; the phases on the clock."""
    with clock("gather"):
        everything = sorted(gather_object(list(mine)), key=lambda one: (one.group, one.index))
    with clock("batch"):
        batch = batch_before(everything, tokenizer)
    with clock("credit"):
        credited = assign(objective, batch, annotate)
    plan(batch, credited, clock)
    with clock("log"):
        if exchange.place()[0] == 0:
            source = SourceBatch(Collected(batch, everything, everything), [credited])
            sum(map(len, Record().lines(1, [source], [])))
    return {"gather": len(pickle.dumps(list(mine)))}


def since(mine, objective, tokenizer, clock, record=None):
    """Likewise."""
    place = exchange.place()
    with clock("gather"):
        known = rollouts.announce(mine)
    with clock("batch"):
        batch = tensors.to_part(known, tokenizer, 0.0, objective.reads)
    with clock("credit"):
        credited = assign(objective, batch, annotate)
    way = plan(batch, credited, clock)
    with clock("rows"):
        moves.bring_credited(way, [credited])
    source, record = SourceBatch(Collected(batch, known, known), [credited]), record or Record(tokenizer=tokenizer)
    with clock("log"):
        chosen = record.choose(1, [source])
        sources, _ = on_main([source], [], chosen)
    with clock("beside"):
        if place[0] == 0:
            sum(map(len, record.lines(1, sources, [], chosen)))
    told = len(pickle.dumps([rollouts.outline(one) for one in mine])) if place[1] > 1 else 0
    moved = len(pickle.dumps(exchange.pack(moves.credit_columns([credited]), batch, torch.arange(len(batch.mask)))))
    return {"gather": told, "rows": moved if place[1] > 1 else 0}


def of_some(mine, objective, tokenizer, clock):
    """As `since`, with `run.samples: 64`."""
    return since(mine, objective, tokenizer, clock, Record(64, tokenizer=tokenizer))


WAYS = {"before": before, "since": since, "since, samples: 64": of_some}


class Cores(Clock):
    """Seconds of this process's core, in place of those on the wall."""

    def __call__(self, phase):
        return _phase(self._seconds, phase)


class _phase:
    def __init__(self, seconds, phase):
        self.seconds, self.phase = seconds, phase

    def __enter__(self):
        self.start = time.process_time()

    def __exit__(self, *_):
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + time.process_time() - self.start


def high_water() -> int:
    """Bytes: the most that this process held since it last wrote 5 to clear_refs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measured(way: str, name: str, size: str):
    """This rank's {seconds of each phase, bytes given, bytes held, tokens of its rollouts}; medians of the repeats."""
    torch.set_num_threads(1)
    if dist.is_initialized():
        rank, count = exchange.place()
        here = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": 29500}
        os.environ |= {name: str(value) for name, value in here.items()}
        PartialState(cpu=True, backend="gloo")
    mine, tokenizer = sampled(*SIZES[size]), smollm2.tokenizer()
    tokens, rows = sum(len(one.response.ids) for one in mine), []
    for _ in range(REPEATS + 1):
        clock, objective, start = Cores(), OBJECTIVES[name](), rss()
        Path("/proc/self/clear_refs").write_text("5")
        given = WAYS[way](mine, objective, tokenizer, clock)
        rows.append({"seconds": clock.seconds(), "given": given, "held": high_water() - start})
    first = rows[0]["held"]  # later ones find memory that the first left behind
    middle = sorted(rows[1:], key=lambda row: sum(row["seconds"].values()))[REPEATS // 2]
    return {**middle, "held": first, "tokens": tokens}


def over_ranks(found: list[dict]) -> dict:
    """Of all ranks: nanoseconds a token on the dearest rank, bytes a token that all gave, and that one held."""
    tokens = sum(one["tokens"] for one in found)
    phases = {phase: max(one["seconds"].get(phase, 0.0) for one in found) for phase in found[0]["seconds"]}
    return {
        "tokens": tokens,
        "ns_a_token": {phase.removeprefix("seconds/"): round(1e9 * s / tokens, 1) for phase, s in phases.items()},
        "given": {what: round(sum(one["given"][what] for one in found) / tokens, 2) for what in found[0]["given"]},
        "held": round(max(one["held"] for one in found) / tokens, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    wanted, out = parser.parse_args(), {}
    for size in wanted.sizes:
        for count in wanted.ranks:
            for name in wanted.objectives:
                for way in wanted.ways:
                    found = over_ranks(on_ranks(lambda w=way, n=name, s=size: measured(w, n, s), count, patience=600))
                    out.setdefault(size, {}).setdefault(f"{count} ranks", {}).setdefault(name, {})[way] = found
                    print(size, count, name, way, found, flush=True)
    wanted.json.write_text(json.dumps(out, indent=2) + "\n")


if __name__ == "__main__":
    main()
