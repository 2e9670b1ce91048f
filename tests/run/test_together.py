"""The record of several ranks is that of one: its lines are the same to the byte, whoever held the rows."""

import os
from dataclasses import replace

import pytest
import torch
from accelerate import PartialState
from support import recorded
from support.ranks import on_ranks
from support.recorded import TOKENIZER

from align.credit import assign
from align.metrics.step import rollout_metrics, signal_metrics
from align.objectives import d3s, dpo, gfpo
from align.objectives.gfpo import AdaptiveK
from align.ranks import exchange
from align.rollout import rollouts, tensors
from align.rollout.sources import Collected, SourceBatch
from align.run.samples import Record
from align.run.together import on_main

ADAPTIVE = AdaptiveK(very_hard=4, hard=3, medium=3, easy=2, warmup_prompts=1)
OBJECTIVES = {"gfpo": gfpo(k=ADAPTIVE), "d3s": d3s(rows=4, share=0.5), "dpo": dpo()}


def quantities(batch, names, rows, reader):
    """Made up of each token's id and place, so that every rank makes up the same."""
    value = -((batch.response_ids * 7 + torch.arange(batch.mask.shape[1]) * 3) % 11).float() / 4 * batch.mask
    missing = {name: value.abs() if name == "entropy" else value for name in names if getattr(batch, name) is None}
    return replace(batch, **missing)


def step(name, found, outputs_of):
    """A step's source with its credit; what the update gave for some rows of all."""
    objective = OBJECTIVES[name]
    credited = assign(objective, found.batch, quantities)
    source = SourceBatch(found, [credited])
    return source, outputs_of(source)


def lines_here(name, samples, outputs):
    """(lines, metrics) of this rank, which holds its groups."""
    rank, count = exchange.place()
    here = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": 29500}
    os.environ |= {key: str(value) for key, value in here.items()}
    PartialState._reset_state()
    PartialState(cpu=True, backend="gloo")
    if name == "dpo":
        pairs = recorded.collected_pairs(1, 0.5).pairs
        found = Collected(tensors.pairs_to_part(pairs, TOKENIZER, 0.5, (), NO_BANK), pairs=pairs)
    else:
        everything = recorded.sampled(1, unrated=(3, 11), longest=9)
        known = rollouts.announce([one for one in everything if one.group % count == rank])
        found = Collected(tensors.to_part(known, TOKENIZER, 0.5, ()), known, known)
    source, said = step(name, found, lambda _: outputs[rank::count])
    record = Record(samples, tokenizer=TOKENIZER)
    chosen = record.choose(1, [source])
    sources, said = on_main([source], said, chosen)
    metrics = {**rollout_metrics([found], 1), **signal_metrics([source], {})}
    return list(record.lines(1, sources, said, chosen)), metrics


NO_BANK = type("NoBank", (), {"fill": staticmethod(lambda batch: batch)})


@pytest.mark.parametrize("samples", ["all", 9, "none"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_record_of_two_ranks_is_that_of_one(name, samples):
    found = recorded.collected_pairs(1, 0.5) if name == "dpo" else recorded.collected(1, 0.5, (3, 11), longest=9)
    remembered = {i: t.state.state_dict() for i, t in enumerate(OBJECTIVES[name].chain) if t.state}
    source, outputs = step(name, found, lambda source: recorded.outputs(source, 0, 5))
    for i, state in remembered.items():
        OBJECTIVES[name].chain[i].state.load_state_dict(state)
    expected = list(Record(samples, tokenizer=TOKENIZER).lines(1, [source], outputs))
    metrics = {**rollout_metrics([found], 1), **signal_metrics([source], {})}
    (lines, of_first), (nothing, of_second) = on_ranks(lambda: lines_here(name, samples, outputs))
    assert bool(expected) == (samples != "none")
    assert lines == expected and nothing == []
    assert of_first == of_second == metrics
