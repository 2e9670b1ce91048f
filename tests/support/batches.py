"""What several tests build on."""

from dataclasses import fields, replace

import torch

from align.batch import Batch, pad
from align.credit import assign
from align.losses import Current


def batch_of(groups, lengths, rewards=None, dtype=torch.float64, **ragged):
    """A batch of responses with the given lengths; keyword arguments are ragged per-token lists."""
    per_token = {name: pad(rows, dtype) for name, rows in ragged.items()}
    if rewards is not None:
        per_token["reward"] = torch.tensor(rewards, dtype=dtype)
    return Batch.of(groups, [[7] * n for n in lengths], dtype=dtype, **per_token)


def no_model(batch, names, rows_B, reader):
    """An `annotate` for batches that carry everything."""
    for name in names:
        batch.need(name, reader)
    return batch


def loss_of(objective, batch, logprob, entropy=None):
    """(loss, gradient [B,T] of the log-probabilities) as the learner would have them in one micro-batch."""
    logprob = logprob.clone().requires_grad_()
    credited = assign(objective, batch, no_model)
    current = Current(logprob, entropy)
    loss = sum(term.contribution(current, credited.batch) for term in credited.terms)
    return loss.detach(), torch.autograd.grad(loss, logprob)[0]


def random_batch(seed, groups=3, size=4, longest=6, dtype=torch.float64):
    """Ragged rows, mixed rewards, log-probabilities of every kind; one response has a single token."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=dtype)

    rows = groups * size
    lengths = (draw(rows) * longest).long() + 1
    batch = batch_of(
        [i // size for i in range(rows)],
        lengths.tolist(),
        rewards=(draw(rows) * 3).round().tolist(),
        dtype=dtype,
    )
    shape = batch.mask.shape
    named = {name: -2 * draw(*shape) for name in ("old_logprob", "ref_logprob", "sampler_logprob")}
    named["old_logprob"] = named["sampler_logprob"] + 0.3 * (draw(*shape) - 0.5)
    logprob = named["old_logprob"] + 0.6 * (draw(*shape) - 0.5)
    return replace(batch, **named), logprob


def widened(batch, by, fill):
    """The batch with `by` more columns; masked floats become `fill`, masked ids 99."""
    changed = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor) and value.dim() == 2:
            changed[field.name] = widen(value, batch.mask, by, fill)
    return replace(batch, **changed)


def widen(value, mask, by, fill):
    """[B,T+by]; what stands outside the mask is replaced."""
    filler = {torch.bool: False, torch.int64: 99}.get(value.dtype, fill)
    kept = value if value.dtype == torch.bool else torch.where(mask, value, torch.tensor(filler, dtype=value.dtype))
    return torch.cat([kept, torch.full((len(value), by), filler, dtype=value.dtype)], 1)


def result_of(objective, batch, **current):
    """(loss, {field: gradient}, {metric: mean or extreme, as the log has it}) of fields of `Current`."""
    leaves = {name: value.clone().requires_grad_() for name, value in current.items()}
    credited = assign(objective, batch, no_model)
    now = Current(**leaves)
    loss = sum(term.contribution(now, credited.batch) for term in credited.terms)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    metrics = {}
    for term in credited.terms:
        metrics |= term.loss.measure(now, credited.batch, term.token_weights)
    extremes = {"_min": torch.min, "_max": torch.max}
    logged = {n: float(extremes.get(n[-4:], torch.mean)(v.detach().double())) for n, v in metrics.items() if len(v)}
    return loss.detach(), dict(zip(leaves, gradients, strict=True)), logged


def random_pairs(seed, pairs=3, longest=5):
    """(batch, fields of `Current`) with everything that a loss of pairs reads; the sides of a pair in either order."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    rows = 2 * pairs
    lengths = (draw(rows) * longest).long() + 1
    batch = batch_of([i // 2 for i in range(rows)], lengths.tolist())
    first = draw(pairs) < 0.5
    shape = batch.mask.shape
    noise = {name: -2 * draw(*shape) for name in ("ref_logprob", "guide_logprob")}
    masks = {name: draw(*shape) for name in ("reward_mask", "kl_mask")}
    batch = replace(batch, chosen=torch.stack([first, ~first], 1).flatten(), **noise, **masks)
    nonnegative = {name: 2 * draw(*shape) for name in ("ref_kl", "reward_mask", "kl_mask")}
    return batch, {"logprob": -2 * draw(*shape), **nonnegative}


def interleaved(batch, seed, fill, by=3):
    """(the batch with `by` tokens more in each row that others put in anywhere, [B,T] where each token is now)."""
    generator = torch.Generator().manual_seed(seed)
    rows, length = batch.mask.shape
    place = torch.stack([torch.randperm(length + by, generator=generator)[:length].sort().values for _ in range(rows)])
    changed = {
        field.name: moved(value, place, by, {torch.bool: False, torch.int64: 99}.get(value.dtype, fill))
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), torch.Tensor) and value.dim() == 2
    }
    if batch.token_text is not None:
        text = [["."] * (length + by) for _ in range(rows)]
        for i, row in enumerate(batch.token_text):
            for t, word in enumerate(row):
                text[i][place[i, t]] = word
        changed["token_text"] = text
    return replace(batch, **{**changed, "present": torch.ones(rows, length + by, dtype=torch.bool)}), place


def moved(value, place, by, fill):
    """[B,T+by] with each of [B,T] values at its place, and `fill` elsewhere."""
    wide = torch.full((len(value), value.shape[1] + by), fill, dtype=value.dtype)
    return wide.scatter(1, place, value)
