"""Estimate the memory that one process of a run takes at its peak, phase by phase and term by term.

It is arithmetic on a `Setup`, which `sizes.py` reads off a survey; nothing is loaded. Responses are assumed to be as
long as they may be. On a CPU nothing is given back between phases, so there is one, the run. `python
tests/bench/memory.py MACHINE RECIPE` measures the error: on recipes/gfpo_chain_sum.yaml, two steps in one process, it
was -6 % with the adapter (estimated 4.78 GiB, measured 5.06) and +11 % without it (estimated 6.44, measured 5.82).

Nothing was measured on a GPU. What it takes there is read from the sources of DeepSpeed 0.19.8 and vLLM 0.32, and the
constants that no source gives are said to be assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from align.learner.micro_batches import UNTRACKED
from align.model import quantize
from align.model.policy import CHUNK
from align.rollout.engine_arguments import ASLEEP, AWAKE

GIB = 2**30

FLOAT = 4  # bytes

LOGIT_COPIES = 4  # of a chunk in float32: logits, their log-softmax, and the gradients of both

# GiB of a process on a CPU, measured there as the growth with each import, and with compiling
LIBRARIES = 0.6  # torch, transformers, DeepSpeed, before any model

VLLM_LIBRARIES = 0.2

COMPILED = 0.2  # what sampling.compile adds to an engine

# of a process on a GPU
CONTEXT = 1.5  # GiB, assumed: CUDA's context and kernels, buffers of cuBLAS and NCCL

GRAPHS = 1.0  # GiB, assumed: vLLM's CUDA graphs, which stay while it sleeps

BATCHED = 16384  # tokens that vLLM computes at once: the most that its `get_batch_defaults` gives an offline engine

SAMPLED_COPIES = 3  # of the sampler's logits in float32, assumed: as they are, shaped, and their log-softmax

BUCKET = 500_000_000  # elements that DeepSpeed reduces at once, in a buffer of that size: `reduce_bucket_size`

LIVE = 1_000_000_000  # parameters that ZeRO-3 keeps gathered: `stage3_max_live_parameters`, `stage3_max_reuse_distance`

GROUP = 1_000_000_000  # parameters that ZeRO-3 updates at once: `sub_group_size`

SHARE = 0.95  # of a card, assumed: the rest is lost between the allocator's blocks


Offload = Literal["none", "between_steps", "cpu"]  # where the optimiser's states wait for a step, or stay


@dataclass(frozen=True)
class Sizes:
    """A policy in numbers: of parameters, where nothing else is said."""

    base: int  # without adapter and heads
    added: int  # of adapter and heads
    trained: int
    linear: int  # of the base's matrices in layers, which quantisation shrinks
    largest: int  # of the largest parameter: the embedding or the head, mostly
    largest_trained: int
    head: int  # of the matrix that gives the logits
    layers: int  # their number
    hidden: int  # numbers of a token between two layers
    intermediate: int  # and inside one, at most
    vocabulary: int
    heads: int  # of keys and values, in a layer
    kept: float  # bytes that all layers keep of a token for the backward pass
    cached: int  # bytes of a token's keys and values, in all layers


@dataclass(frozen=True)
class Sampler:
    """A vLLM engine beside the trainer, in each process."""

    sequences: int  # that it works on at once
    context: int  # most tokens of one
    merged: bool = True  # whether a sync hands whole weights over
    cache: float | None = None  # GiB of its keys and values; None: a share of what is left, as far as it is of use
    compiled: bool = True
    tensor_parallel: int = 1
    sleeps: bool = False  # whether the cache, and weights that a sync brings whole, leave the GPU during an update


@dataclass(frozen=True)
class Setup:
    """What the memory of one process depends on."""

    policy: Sizes
    gpu_gib: float | None  # of each process's GPU; None on a CPU
    processes: int
    zero_stage: int
    width: int  # bytes of a weight or an activation
    moments: int  # numbers that the optimiser keeps of a weight
    frozen: int  # models as large as the policy beside it: a guide, a reference
    reference: int  # how many of these are not needed where the policy is an adapter over its base
    tokens: int  # that all processes together compute with a gradient in a step
    row: int  # of the longest row
    micro_batch: int  # most tokens of a micro-batch that has several rows
    sampler: Sampler | None
    checkpointed: bool = False  # whether layers are computed again in the backward pass
    quantised: bool = False  # whether the base's matrices have 4 bits
    offload: Offload = "none"
    machines: int = 1  # over which the processes are spread

    @property
    def master(self) -> bool:
        """Whether the optimiser has float32 weights of its own: DeepSpeed's under ZeRO, and in bfloat16."""
        return self.zero_stage > 0 or self.width < FLOAT

    def shards(self, stage: int) -> int:
        """Number of processes that share what ZeRO divides from this stage on."""
        return self.processes if self.zero_stage >= stage else 1


Terms = Mapping[str, float]  # {term: bytes}


def phases(setup: Setup) -> dict[str, dict[str, float]]:
    """{phase: {term: GiB}} of one process, the `total` of each phase among them."""
    if setup.gpu_gib is None:
        return {"run": _in_gib(_on_cpu(setup))}
    held, engine, sampler = _held(setup), _engine(setup), setup.sampler
    if setup.offload == "none":
        held |= _optimiser(setup)
    always = {"CUDA graphs": GRAPHS * GIB * bool(sampler and sampler.compiled), "CUDA context": CONTEXT * GIB}
    asleep, awake = engine, engine
    if sampler and sampler.sleeps:
        awake = {"engine weights": engine["engine weights"]}  # the cache is the last to wake
        asleep = {} if sampler.merged else awake
    out = {"update": {**held, **_busiest(setup), **asleep, **always}}
    if sampler:
        out = {"sampling": {**held, **engine, **_workspace(setup), **always}, **out}
        out["sync"] = {**held, **_merging(setup), **awake, **always}
    return {name: _in_gib(terms) for name, terms in out.items()}


def peak(setup: Setup) -> tuple[str, float]:
    """(the phase that takes most, GiB)."""
    found = {name: terms["total"] for name, terms in phases(setup).items()}
    most = max(found, key=found.get)
    return most, found[most]


def fits(setup: Setup) -> bool:
    """Whether it fits on its GPU, as far as the estimate goes; a CPU takes anything."""
    return setup.gpu_gib is None or peak(setup)[1] <= SHARE * setup.gpu_gib


def tracked(setup: Setup) -> int:
    """Tokens of the largest micro-batch with a gradient."""
    return min(max(setup.micro_batch, setup.row), -(-setup.tokens // setup.processes))


def activations(setup: Setup) -> float:
    """Bytes that the layers keep of the largest micro-batch, or that one layer holds in a pass without a gradient."""
    policy = setup.policy
    one = policy.kept / policy.layers  # layer
    kept = policy.layers * policy.hidden * setup.width + one if setup.checkpointed else policy.kept
    free = min(max(setup.micro_batch * UNTRACKED, setup.row), -(-setup.tokens // setup.processes))
    return max(tracked(setup) * kept, free * one)


def _on_cpu(setup: Setup) -> Terms:
    policy, sampler = setup.policy, setup.sampler
    terms = {
        **_held(setup),
        **_optimiser(setup),
        "gradients": policy.trained * FLOAT / setup.shards(2),
        "activations": activations(setup),
        "logits": _logits(setup),
        "libraries": LIBRARIES * GIB,
    }
    if sampler is None:
        return terms
    return terms | {
        **_engine(setup),
        "engine libraries": VLLM_LIBRARIES * GIB,
        "compiled code": COMPILED * GIB * sampler.compiled,
    }


def _held(setup: Setup) -> dict[str, float]:
    """What the trainer holds in every phase, without the optimiser's states."""
    policy, width = setup.policy, setup.width
    base = policy.base * width
    if setup.quantised:
        base = policy.linear * quantize.BYTES + (policy.base - policy.linear) * width
    whole = policy.base + policy.added
    terms = {
        "weights": (base + policy.added * width) / setup.shards(3),
        "reference and guide": setup.frozen * whole * width / setup.shards(3),
    }
    if setup.zero_stage == 3 and setup.gpu_gib is not None:
        terms |= {"reduction": BUCKET * width, **_gradients(setup)}
    return terms


def _optimiser(setup: Setup) -> dict[str, float]:
    """Its states, and the float32 weights that it moves."""
    return {"optimiser": setup.policy.trained * (setup.moments + setup.master) * FLOAT / setup.shards(1)}


def _gradients(setup: Setup) -> dict[str, float]:
    """Their sums, in float32; where the optimiser steps on the CPU they are there too."""
    return {"gradients": 0.0 if setup.offload == "cpu" else setup.policy.trained * FLOAT / setup.shards(2)}


def _backward(setup: Setup) -> Terms:
    """What a backward pass takes besides: one parameter's gradient is whole, and a bucket of them is summed up in
    float32."""
    policy, width = setup.policy, setup.width
    bucket = BUCKET * width if setup.zero_stage > 0 else 0
    copy = min(BUCKET, policy.trained) * FLOAT if width < FLOAT else 0
    terms = {
        **_gradients(setup),
        "activations": activations(setup),
        "logits": _logits(setup),
        "reduction": bucket + copy + policy.largest_trained * width,
    }
    if setup.zero_stage == 3:
        terms["gathered layers"] = min(policy.base, LIVE + policy.head) * width
    return terms


def _busiest(setup: Setup) -> Terms:
    """The backward pass or the optimiser's step, whichever takes more."""
    held = _optimiser(setup) if setup.offload == "none" else {}
    return max(_backward(setup), _step(setup), key=lambda terms: _total({**held, **terms}))


def _step(setup: Setup) -> Terms:
    """What the optimiser's step takes besides: torch's AdamW makes a root as large as what it updates at once, and
    ZeRO-3 a copy of its gradient."""
    if setup.offload == "cpu":
        return {}
    updated, copies = setup.policy.trained / setup.shards(1), 1
    if setup.zero_stage == 3:
        updated, copies = min(updated, GROUP), 2
    return {**_gradients(setup), **_optimiser(setup), "optimiser step": updated * FLOAT * copies}


def _engine(setup: Setup) -> Terms:
    """What the engine holds while it is awake."""
    policy, sampler = setup.policy, setup.sampler
    if sampler is None:
        return {}
    added = 0 if sampler.merged or setup.gpu_gib is None else policy.added
    weights = (policy.base + added) * setup.width / sampler.tensor_parallel
    return {"engine weights": weights, "key-value cache": _cache(setup, sampler, weights)}


def _cache(setup: Setup, sampler: Sampler, weights: float) -> float:
    """Bytes of the engine's keys and values: those asked for, of which a CPU gives what is written; where none are
    asked for a GPU's share of what is free, as far as it is of use. One sequence has to fit into that share."""
    one = sampler.context * setup.policy.cached / min(sampler.tensor_parallel, setup.policy.heads)
    most = sampler.sequences * one
    if setup.gpu_gib is None:
        return min(most, sampler.cache * GIB)
    if sampler.cache is not None:
        return sampler.cache * GIB
    share = ASLEEP if sampler.sleeps else AWAKE
    held = _held(setup) | (_optimiser(setup) if setup.offload == "none" else {})
    free = (setup.gpu_gib - CONTEXT) * GIB - _total(held) - weights
    return min(most, share * free) if share * free >= one else one / share


def _workspace(setup: Setup) -> Terms:
    """What vLLM computes with: the tokens that it takes at once, and the logits of the sequences."""
    policy, sampler = setup.policy, setup.sampler
    token = (2 * policy.hidden + 3 * policy.intermediate / sampler.tensor_parallel) * setup.width
    logits = SAMPLED_COPIES * sampler.sequences * policy.vocabulary * FLOAT
    return {"engine workspace": BATCHED * token + logits}


def _merging(setup: Setup) -> Terms:
    """What handing over the weights takes: two copies of the largest, gathered and merged, or the adapter whole."""
    count = 2 * setup.policy.largest if setup.sampler.merged else setup.policy.added
    return {"weights on their way": count * setup.width}


def _logits(setup: Setup) -> float:
    return LOGIT_COPIES * CHUNK * setup.policy.vocabulary * FLOAT


def _total(terms: Terms) -> float:
    return sum(terms.values())


def _in_gib(terms: Terms) -> dict[str, float]:
    """{term: GiB} of {term: bytes}, and their `total`."""
    return {name: round(value / GIB, 3) for name, value in terms.items()} | {"total": round(_total(terms) / GIB, 3)}
