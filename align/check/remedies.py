"""Find the keys that make a recipe fit on its GPUs: each is tried by estimating anew, the smallest change first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from align.check.memory import GIB, SHARE, Setup, Sizes, fits, peak, phases

SHOWN = 3  # ways that a problem names

LEAST_ROWS = 1024  # tokens: below that a micro-batch leaves a GPU waiting

MACHINE = 8  # GPUs, over which one engine may be divided

MOST = 64  # processes that are tried


@dataclass(frozen=True)
class Change:
    """A key that is written otherwise, and what the memory then depends on."""

    text: str
    setup: Setup


Kind = Callable[[Setup], Iterator[Change]]  # the changes of one key, from the smallest to the largest


def problem(setup: Setup, adapted: Callable[[], Sizes]) -> str | None:
    """Why the recipe cannot fit on its GPUs and what would make it fit; None where it fits.

    `adapted` gives the policy's sizes with an adapter instead of all weights trained.
    """
    if fits(setup):
        return None
    phase, gib = peak(setup)
    what = f"the {phase} takes about {gib:.1f} GiB of a GPU's {setup.gpu_gib:g}, by arithmetic, not measured"
    found = ways(setup, adapted)
    if not found:
        return f"{what}; no key makes it fit: take a smaller model, or larger GPUs"
    told = [f"{' with '.join(c.text for c in way)} ({peak(way[-1].setup)[1]:.1f} GiB)" for way in found]
    return f"{what}; it would fit with {', or '.join(told)}"


def ways(setup: Setup, adapted: Callable[[], Sizes]) -> list[list[Change]]:
    """Ways to make it fit, each a list of changes: single ones where one is enough, else several together."""
    kinds: list[Kind] = [cache, sleep, checkpoint, micro_batch, offload, tensor_parallel, quantise, zero_3, processes]
    if setup.policy.trained > setup.policy.added:
        kinds.append(partial(adapter, adapted=adapted))
    alone = [next((change for change in kind(setup) if fits(change.setup)), None) for kind in kinds]
    if any(alone):
        return [[change] for change in alone if change][:SHOWN]
    together = _together(setup, kinds)
    return [together] if together else []


def _together(setup: Setup, kinds: Sequence[Kind]) -> list[Change]:
    """Changes that make it fit together, none of which can be left out or be smaller; [] where there are none."""
    counts = range(1, len(kinds) + 1)
    taken = next((list(kinds[:n]) for n in counts if fits(_after(setup, kinds[:n]))), None)
    if taken is None:
        return []
    for kind in list(taken):
        fewer = [other for other in taken if other is not kind]
        if fits(_after(setup, fewer)):
            taken = fewer
    out: list[Change] = []
    for i, kind in enumerate(taken):
        options = kind(out[-1].setup if out else setup)
        least = next((change for change in options if fits(_after(change.setup, taken[i + 1 :]))), None)
        out += [least] if least else []
    return out


def _after(setup: Setup, kinds: Sequence[Kind]) -> Setup:
    """The setup with the largest change of each key, one over the other."""
    for kind in kinds:
        setup = next((change.setup for change in reversed(list(kind(setup)))), setup)
    return setup


def cache(setup: Setup) -> Iterator[Change]:
    """A smaller cache, of at least one sequence."""
    if setup.sampler is None:
        return
    now = max(terms.get("key-value cache", 0.0) for terms in phases(setup).values())
    one = setup.sampler.context * setup.policy.cached / min(setup.sampler.tensor_parallel, setup.policy.heads) / GIB
    over = peak(setup)[1] - SHARE * setup.gpu_gib
    size = math.floor(10 * (now - over)) / 10
    if one <= size < now and size > 0:
        yield Change(f"sampling.cache_gib: {size:g}", _sampling(setup, cache=size))


def sleep(setup: Setup) -> Iterator[Change]:
    """An engine that sleeps during the update."""
    if setup.sampler and not setup.sampler.sleeps:
        yield Change("sampling.sleep: true", _sampling(setup, sleeps=True))


def checkpoint(setup: Setup) -> Iterator[Change]:
    """Layers that are computed again."""
    if not setup.checkpointed:
        yield Change("optim.checkpoint_activations: true", replace(setup, checkpointed=True))


def micro_batch(setup: Setup) -> Iterator[Change]:
    """Smaller micro-batches, as far as a row allows."""
    tokens = setup.micro_batch
    while tokens // 2 >= max(LEAST_ROWS, setup.row):
        tokens //= 2
        yield Change(f"optim.micro_batch_tokens: {tokens}", replace(setup, micro_batch=tokens))


def offload(setup: Setup) -> Iterator[Change]:
    """The optimiser's states in host memory until they are needed, or for good."""
    places = {1: ["cpu"], 2: ["between_steps", "cpu"], 3: ["cpu"]}.get(setup.zero_stage, [])  # as `machine` has it
    for place in places if setup.offload == "none" else ():
        yield Change(f"optim.offload_optimizer: {place}", replace(setup, offload=place))


def tensor_parallel(setup: Setup) -> Iterator[Change]:
    """An engine over several processes of one machine."""
    if setup.sampler is None:
        return
    parts, each = setup.sampler.tensor_parallel * 2, setup.processes // setup.machines
    while parts <= min(MACHINE, each):
        if each % parts == 0 and max(parts, setup.policy.heads) % min(parts, setup.policy.heads) == 0:
            yield Change(f"sampling.tensor_parallel: {parts}", _sampling(setup, tensor_parallel=parts))
        parts *= 2


def quantise(setup: Setup) -> Iterator[Change]:
    """A base of 4 bits below an adapter; ZeRO-3 does not divide it."""
    if not setup.quantised and setup.zero_stage < 3 and setup.policy.trained <= setup.policy.added:
        yield Change("model.quantize: 4bit", replace(setup, quantised=True))


def zero_3(setup: Setup) -> Iterator[Change]:
    """Weights that are divided too."""
    if setup.zero_stage < 3 and setup.processes > 1 and not setup.quantised:
        file = "zero3" if setup.machines == 1 else "nodes_zero3"
        yield Change(f"ZeRO-3 (launch/{file}.yaml)", replace(setup, zero_stage=3))


def processes(setup: Setup) -> Iterator[Change]:
    """More GPUs."""
    count = setup.processes * 2
    while count <= MOST and setup.zero_stage > 0:
        machines = max(setup.machines, -(-count // MACHINE))
        where = f" on {machines} machines" if machines > 1 else ""
        yield Change(f"num_processes: {count}{where}", replace(setup, processes=count, machines=machines))
        count *= 2


def adapter(setup: Setup, *, adapted: Callable[[], Sizes]) -> Iterator[Change]:
    """An adapter instead of all weights: its base is the reference."""
    if setup.policy.trained > setup.policy.added:
        sampler = setup.sampler and replace(setup.sampler, merged=False)
        models = {"policy": adapted(), "frozen": setup.frozen - setup.reference, "reference": 0}
        yield Change("model.adapter: {rank: 16}", replace(setup, sampler=sampler, **models))


def _sampling(setup: Setup, **changes: object) -> Setup:
    return replace(setup, sampler=replace(setup.sampler, **changes))
