"""Steps of a run without a model: rollouts or pairs, made-up quantities in place of passes, outputs of an update."""

from dataclasses import fields
from types import SimpleNamespace

import torch

from align.batch import Batch
from align.credit import assign
from align.data.prompts import Answer, Pair, Prompt, Response
from align.learner.learner import Outputs
from align.learner.passes import ForwardPasses
from align.losses.loss import Current
from align.rollout import tensors
from align.rollout.rollouts import Rollout
from align.rollout.sources import Collected, SourceBatch
from align.system.clock import Clock

TOKENIZER = SimpleNamespace(
    all_special_ids=[2], decode=lambda ids: " ".join(f"t{i}" for i in ids) + "." * (ids[-1] % 5 == 0)
)


class Passes:
    """Gives made-up values of every quantity, for the rows asked for only."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def score(self, batch, rows_B, quantities=("logprob",), who="policy"):
        drawn = {name: -2 * torch.rand(batch.mask.shape, generator=self.generator) for name in quantities}
        signed = {name: value.abs() / 2 if name != "logprob" else value for name, value in drawn.items()}
        return {name: torch.where(rows_B[:, None], value, 0.0) for name, value in signed.items()}


def sampled(seed: int, groups=4, size=8, unrated=(), longest=9, vocabulary=15) -> list[Rollout]:
    """Responses of one token to `longest`, the end token last; those at the places `unrated` have no reward."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n, *shape):
        return torch.randint(n, shape, generator=generator)

    out = []
    for i in range(groups * size):
        length, right = int(draw(longest, 1)) + 1, bool(draw(2, 1))
        ids = [*(draw(vocabulary - 3, length - 1) + 3).tolist(), 2]
        logprobs = (-3 * torch.rand(length, generator=generator)).tolist()
        reward = None if i in unrated else float(right) + float(draw(3, 1)) / 10
        prompt = Prompt([3, 4 + i // size], f"p{i // size}", f"p{i // size}", {})
        response = Response(ids, logprobs, bool(draw(4, 1) == 0))
        text = TOKENIZER.decode(ids)
        out.append(
            Rollout(i // size, i % size, prompt, response, text, {"r": reward}, reward, right and i not in unrated)
        )
    return out


def collected(seed: int, progress: float, unrated=(), **size: int) -> Collected:
    """A source's rollouts of a step."""
    found = sampled(seed, unrated=unrated, **size)
    rated = [rollout for rollout in found if rollout.reward is not None]
    return Collected(tensors.to_batch(rated, TOKENIZER, progress, tensors.ON_DEMAND), found, found)


def collected_pairs(seed: int, progress: float, pairs=4, **size: int) -> Collected:
    """A source's pairs of a step."""
    found = sampled(seed, groups=pairs, size=2, **size)
    answers = [Answer(r.response.ids, r.text, r.response.truncated) for r in found]
    made = [Pair([3, 4 + i], f"p{i}", f"p{i}", {}, *answers[2 * i : 2 * i + 2], i) for i in range(pairs)]
    return Collected(tensors.pairs_to_batch(made, TOKENIZER, progress, tensors.ON_DEMAND), pairs=made)


def step(objectives, found: Collected, seed: int, old_logprob="sampler", given=("old_logprob",)) -> SourceBatch:
    """The batch with its credit, as a step has it whose first update gives these quantities itself."""
    passes = ForwardPasses(Passes(seed), old_logprob, Clock())
    annotate = passes.for_batch({name for objective in objectives for name in objective.reads})
    return SourceBatch(found, [assign(o, found.batch, annotate, given) for o in objectives])


def outputs(source: SourceBatch, number: int, seed: int) -> list[Outputs]:
    """What two micro-batches of an update give, of every other group: the tokens that are trained, 0 elsewhere."""
    batch, generator = source.collected.batch, torch.Generator().manual_seed(seed)
    trained = torch.stack([credited.trained for credited in source.credited]).any(0)
    reads = {"logprob", *(name for credited in source.credited for name in credited.reads_current)}
    now = {name: torch.rand(batch.mask.shape, generator=generator) for name in sorted(reads)}
    if batch.sampler_logprob is not None:
        now["logprob"] = batch.sampler_logprob + 0.6 * (now["logprob"] - 0.5)
    given = [credited.batch.old_logprob for credited in source.credited if credited.batch.old_logprob is not None]
    for old in given if len(given) < len(source.credited) else ():  # for the others it is the update's, the same policy
        now["logprob"] = torch.where(old != 0, old, now["logprob"])
    if "entropy" in reads:  # the policy is that of the pass before, where there was one
        for entropy in (c.batch.entropy for c in source.credited if c.batch.entropy is not None):
            now["entropy"] = torch.where(entropy != 0, entropy, now["entropy"])
    rows = trained.any(1).nonzero()[:, 0].tolist()
    parts = [part for odd in (0, 1) if (part := [row for row in rows if batch.group[row] % 2 == odd])]
    named = [f.name for f in fields(Current) if f.name in now]
    return [
        Outputs(number, part, Current(**{n: torch.where(trained, now[n], 0.0)[part] for n in named})) for part in parts
    ]


def loss_of(source: SourceBatch, found: list[Outputs]) -> float:
    """The loss of the update."""
    total = 0.0
    for outputs in found:
        index = torch.tensor(outputs.rows)
        for credited in source.credited:
            part: Batch = credited.batch.rows(index)
            if part.old_logprob is None:
                part = Batch(**{**vars(part), "old_logprob": outputs.current.logprob})
            total += sum(float(term.contribution(outputs.current, part, index)) for term in credited.terms)
    return total
