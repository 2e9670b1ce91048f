"""Tell what a sampler has by its log-probabilities, without engines; with planted failures: tests/integration."""

import math

import pytest
import torch

from align.rollout.generator import SamplerLogprobs
from align.rollout.sync_check import MOVED, ROUNDING, Candidate, TrainerLogprobs, compare, diagnose, left_behind

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
        before = Candidate("stale adapter", "the last sync", TRAINER.prompt, sampler.prompt)
        assert compare(sampler, trainer).mean < TOLERANCE
        assert left_behind(sampler, trainer, [before], TOLERANCE) == stale
    finding = diagnose(sampler, trainer, [before], temperature=HEAT, tolerance=TOLERANCE)
    assert finding.kind == "stale adapter"
    assert not left_behind(sampler_of(LOGITS * (1 + 1e-6)), trainer, [before], TOLERANCE)


def test_what_the_sampler_said_before_tells_weights_apart_that_the_tolerance_does_not():
    sampler, wide = sampler_of(STALE), 1.0
    near = Candidate("base only", "base", prompt_of(STALE))
    seen = Candidate("stale adapter", "the last sync", prompt_of(STALE) + 0.01, sampler.prompt)
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
