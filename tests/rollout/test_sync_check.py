"""Tell what a sampler has by its log-probabilities, without engines; with planted failures: tests/integration."""

import math
from dataclasses import replace

import pytest
import torch

from align.config.sampling_keys import Sampling
from align.model.cut import Cut
from align.rollout.generator import SamplerLogprobs, asked
from align.rollout.sync_check import compare, cut_alike
from align.rollout.sync_faults import (
    MOVED,
    ROUNDING,
    Candidate,
    TrainerLogprobs,
    diagnose,
    left_behind,
    other_rows,
    other_settings,
)

TOLERANCE, HEAT = 1e-3, 0.7
torch.manual_seed(0)
LOGITS = 2 * torch.randn(6, 40)  # the policy's, behind each of 6 tokens; the last says what follows
IDS = [3, 1, 4, 1, 5, 9]


def prompt_of(logits):
    return logits[:-1].log_softmax(-1)[range(5), IDS[1:]]


def sampler_of(logits, temperature=HEAT, cut=None):
    """What a sampler with these logits says; `cut` takes logits to those of the support."""
    last = logits[-1] / temperature
    following = (cut(last) if cut else last).log_softmax(-1)
    top = following.topk(8).indices.tolist()
    return SamplerLogprobs(prompt_of(logits).tolist(), {token: float(following[token]) for token in top})


TRAINER = TrainerLogprobs(prompt_of(LOGITS), (LOGITS[-1] / HEAT).log_softmax(-1))
BASE, STALE, GUIDE = (LOGITS + scale * torch.randn(6, 40) for scale in (0.8, 0.4, 1.2))
CANDIDATES = [
    Candidate("base only", "base", prompt_of(BASE)),
    Candidate("stale adapter", "the last sync", prompt_of(STALE)),
    Candidate("stale adapter", "the first sync", prompt_of(BASE)),  # the same as the base, which stands first
    Candidate("wrong adapter", "guide", prompt_of(GUIDE)),
]


def found(sampler):
    assert compare(sampler, TRAINER).mean > TOLERANCE
    return diagnose(sampler, TRAINER, CANDIDATES, temperature=HEAT, tolerance=TOLERANCE)


def test_a_sampler_with_the_policy_is_within_rounding():
    gaps = compare(sampler_of(LOGITS), TRAINER)
    assert gaps.largest < 1e-5


def test_what_the_sampler_says_of_the_next_token_counts_too():
    gaps = compare(sampler_of(LOGITS, temperature=1.0), TRAINER)
    assert gaps.prompt < 1e-5 and gaps.largest > gaps.mean == gaps.following > 0.1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_is_the_largest_gap(bad):
    right = sampler_of(LOGITS)
    assert compare(SamplerLogprobs([bad, *right.prompt[1:]], right.following), TRAINER).prompt == math.inf
    assert compare(SamplerLogprobs(right.prompt, {**right.following, 0: bad}), TRAINER).following == math.inf


@pytest.mark.parametrize(
    "logits, kind, what",
    [
        (BASE, "base only", "base"),
        (STALE, "stale adapter", "the last sync"),
        (GUIDE, "wrong adapter", "guide"),
        (LOGITS + 0.02 * torch.randn(6, 40), "merge rounding", "rounded"),
        (torch.randn(6, 40), "unknown weights", "no weights that the trainer knows"),
    ],
)
@pytest.mark.parametrize("temperature", [HEAT, 1.0])
def test_weights_are_told_apart_whatever_the_temperature(logits, kind, what, temperature):
    finding = found(sampler_of(logits, temperature))
    assert finding.kind == kind and what in finding.what


def test_the_smallest_gap_decides_among_candidates_within_the_tolerance():
    near = Candidate("stale adapter", "near", CANDIDATES[0].prompt + TOLERANCE / 2)
    finding = diagnose(sampler_of(BASE), TRAINER, [near, CANDIDATES[0]], temperature=HEAT, tolerance=TOLERANCE)
    assert finding.kind == "base only"


def test_without_candidates_small_gaps_are_rounding_and_large_ones_unknown():
    for gap, kind in ((0.9 * ROUNDING, "merge rounding"), (1.1 * ROUNDING, "unknown weights")):
        sampler = SamplerLogprobs((TRAINER.prompt + gap).tolist(), {})
        assert diagnose(sampler, TRAINER, [], temperature=HEAT, tolerance=TOLERANCE).kind == kind


def test_a_sampler_that_stays_as_it_was_is_stale_however_little_the_policy_moved():
    sampler = sampler_of(LOGITS)  # rounded as this engine does
    for moved, stale in ((0.5, False), (2.0, True)):
        trainer = TrainerLogprobs(TRAINER.prompt + moved * MOVED * TOLERANCE, TRAINER.following)
        before = Candidate("stale adapter", "the last sync", TRAINER.prompt, [sampler.prompt])
        assert compare(sampler, trainer).mean < TOLERANCE
        assert left_behind(sampler, trainer, [before], TOLERANCE) == stale
    finding = diagnose(sampler, trainer, [before], temperature=HEAT, tolerance=TOLERANCE)
    assert finding.kind == "stale adapter"
    assert not left_behind(sampler_of(LOGITS * (1 + 1e-6)), trainer, [before], TOLERANCE)


def test_what_the_sampler_said_before_tells_weights_apart_that_the_tolerance_does_not():
    sampler, wide = sampler_of(STALE), 1.0
    near = Candidate("base only", "base", prompt_of(STALE))
    seen = Candidate("stale adapter", "the last sync", prompt_of(STALE) + 0.01, [sampler.prompt])
    assert diagnose(sampler, TRAINER, [near, seen], temperature=HEAT, tolerance=wide).kind == "stale adapter"


def top_k(k):
    return lambda logits: logits.masked_fill(logits < logits.topk(k).values[-1], -math.inf)


@pytest.mark.parametrize(
    "temperature, cut, what",
    [
        (1.0, None, "at temperature 1 instead of 0.7"),
        (0.4, None, "at temperature 0.4 instead of 0.7"),
        (HEAT, top_k(12), "of the distribution: top-k, top-p or min-p"),  # those asked about are inside
        (HEAT, top_k(3), "5 of the 8 likeliest tokens can never be sampled"),
    ],
)
def test_the_right_weights_sampled_in_another_way(temperature, cut, what):
    finding = found(sampler_of(LOGITS, temperature, cut))
    assert finding.kind == "temperature or top-p support" and what in finding.what


def test_a_sampler_that_draws_all_of_the_likeliest_alike_is_told():
    sampler = sampler_of(LOGITS)
    flat = replace(sampler, following=dict.fromkeys(sampler.following, -2.0))
    assert "all alike" in found(flat).what


CUT = Cut(top_k=5)


def cut(sampler, tolerance=TOLERANCE, by=CUT):
    return cut_alike(TRAINER, sampler, by, tolerance)


def test_a_cut_that_the_recipe_asks_for_is_no_gap_and_another_is():
    right = sampler_of(LOGITS, cut=top_k(5))
    assert compare(right, cut(right)).largest < 1e-5
    for other in (top_k(4), top_k(7), None):
        sampler = sampler_of(LOGITS, cut=other)
        trainer = cut(sampler)
        assert compare(sampler, trainer).mean > TOLERANCE
        finding = diagnose(sampler, trainer, [], temperature=HEAT, tolerance=TOLERANCE)
        assert finding.kind == "temperature or top-p support" and "top-k, top-p or min-p" in finding.what
    assert cut(right, by=Cut()) is TRAINER


def test_rounding_at_the_edge_of_the_support_is_no_gap():
    """The sampler has another token than the trainer there: as likely, but for rounding."""
    order = TRAINER.following.argsort(descending=True)
    whole = TRAINER.following.clone()
    whole[order[5]] = whole[order[4]] - TOLERANCE / 2
    has = [*order[:4].tolist(), int(order[5])]
    following = whole[has].log_softmax(-1)
    sampler = SamplerLogprobs(
        TRAINER.prompt.tolist(), {**dict(zip(has, following.tolist(), strict=True)), int(order[4]): -math.inf}
    )
    trainer = TrainerLogprobs(TRAINER.prompt, whole)
    assert compare(sampler, cut_alike(trainer, sampler, CUT, TOLERANCE)).largest < 1e-5
    assert compare(sampler, cut_alike(trainer, sampler, CUT, TOLERANCE / 10)).mean == math.inf


@pytest.mark.parametrize(
    "found, expected",
    [
        ({}, None),
        ({"frequency_penalty": 0.5}, "by its own settings frequency_penalty is 0.5 instead of neutral"),
        ({"ignore_eos": True, "top_k": 80}, "ignore_eos is True instead of neutral, top_k is 80 instead of neutral"),
        ({"top_p": 0.999}, "top_p is 0.999 instead of 0.9"),
        ({"top_p": 1.0}, "top_p is 1.0 instead of 0.9"),
        ({"temperature": 0.8}, "temperature is 0.8 instead of 0.7"),
        ({"max_tokens": 3}, "max_tokens is 3 instead of 1"),
        ({"stop": []}, "stop is [] instead of ['x']"),
    ],
)
def test_a_setting_that_was_not_asked_for_is_told(found, expected):
    wanted = asked(Sampling(top_p=0.9, stop=["x"]), 0.7, 1)
    said = other_settings({**wanted, **found}, wanted)
    assert said is None if expected is None else expected in said.what
    if said:
        cut = {"temperature", "top_p", "top_k", "min_p"} & set(found)
        assert said.kind == ("temperature or top-p support" if cut else "sampling settings")


def test_nothing_is_asked_for_by_default_but_the_temperature():
    assert asked(Sampling(), 1.0, 4) == {"temperature": 1.0, "max_tokens": 4}
    cut = Sampling(top_p=0.5, top_k=3, min_p=0.1, stop=["x"])
    assert asked(cut, 0.0, 4) == {"temperature": 0.0, "max_tokens": 4, "stop": ["x"]}


def test_one_row_of_a_table_that_differs_is_told():
    rows = torch.randn(40, 8)
    rows[7] = 0.0  # such as a pad token's
    tables = {"embedding": rows, "head": rows}
    assert other_rows(tables, tables, IDS) is None and other_rows({}, tables, IDS) is None
    padded = torch.cat([rows, torch.ones(24, 8)])  # as vLLM pads
    assert other_rows({"embedding": padded, "head": padded.bfloat16().float()}, tables, IDS) is None
    assert other_rows({"embedding": 2 * padded}, tables, IDS) is None  # scaled there, and not when it is read
    for i, change, told in ((3, 1.5, ", 1.5 times as long"), (39, -1.0, ", 1 times as long"), (0, math.nan, "")):
        other = padded.clone()
        other[i] *= change
        said = other_rows({"embedding": padded, "head": other}, tables, IDS)
        assert said.kind == "unknown weights"
        assert f"1 of 40 rows of its head are not the policy's, first that of token {i}{told}" in said.what
