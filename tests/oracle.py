"""Objectives as plain Python loops, straight from the equations: slow, obvious, and compared with the tensors."""

import math


def group_norm(rewards, ddof=0, eps=0.0):
    """One group's advantages; `ddof` None does not divide."""
    n = len(rewards)
    if n < 2 or max(rewards) == min(rewards):
        return [0.0] * n
    mean = sum(rewards) / n
    if ddof is None:
        return [r - mean for r in rewards]
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (n - ddof))
    return [(r - mean) / (std + eps) for r in rewards]


def keep(rewards, lengths, k, metric):
    """Rows of one group that GFPO keeps, best first."""
    score = {"shortest": lambda i: -lengths[i], "token_efficiency": lambda i: rewards[i] / max(lengths[i], 1)}[metric]
    return sorted(range(len(rewards)), key=lambda i: (-score(i), i))[:k]


def gfpo_advantages(rewards, lengths, k, metric="shortest", ddof=0, eps=0.0):
    """One group's advantages, 0 for rows that are not kept."""
    rows = sorted(keep(rewards, lengths, k, metric))
    out = [0.0] * len(rewards)
    for row, advantage in zip(rows, group_norm([rewards[i] for i in rows], ddof, eps), strict=True):
        out[row] = advantage
    return out


def surrogate(logprob, old, advantage, low=0.2, high=0.2):
    """-min(r A, clip(r) A) of one token."""
    ratio = math.exp(logprob - old)
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def aggregate(losses, kept, mode, denominator="full", constant=None):
    """Ragged token losses to one number; `kept` marks the rows in the sum."""
    rows = [i for i in range(len(losses)) if kept[i]]
    total = sum(sum(losses[i]) for i in rows)
    counted = range(len(losses)) if denominator == "full" else [i for i in rows if losses[i]]
    if mode == "token-mean":
        return total / sum(len(losses[i]) for i in counted)
    if mode == "seq-mean-token-mean":
        return sum(sum(losses[i]) / len(losses[i]) for i in rows if losses[i]) / len(counted)
    if mode == "seq-mean-token-sum":
        return total / len(counted)
    if mode == "tokens_per_row":
        return total / (len(counted) * constant)
    assert mode == "constant"
    return total / constant
