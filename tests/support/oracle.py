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


# ---- preference pairs: `good` and `bad` are the two responses, {quantity: one value a token}


def minus_log_sigmoid(z):
    return math.log1p(math.exp(-z)) if z > 0 else -z + math.log1p(math.exp(z))


def log_ratios(side):
    return [p - q for p, q in zip(side["logprob"], side["ref_logprob"], strict=True)]


def mean(values):
    return sum(values) / len(values)


def dpo(good, bad, beta, wrong=0.0, robust=False):
    z = beta * (sum(log_ratios(good)) - sum(log_ratios(bad)))
    if robust:
        return ((1 - wrong) * minus_log_sigmoid(z) - wrong * minus_log_sigmoid(-z)) / (1 - 2 * wrong)
    return (1 - wrong) * minus_log_sigmoid(z) + wrong * minus_log_sigmoid(-z)


def ipo(good, bad, beta, of=mean):
    return (of(log_ratios(good)) - of(log_ratios(bad)) - 1 / (2 * beta)) ** 2


def simpo(good, bad, beta, ratio, wrong=0.0):
    z = beta * (mean(good["logprob"]) - mean(bad["logprob"]) - ratio)
    return (1 - wrong) * minus_log_sigmoid(z) + wrong * minus_log_sigmoid(-z)


def tdpo(good, bad, beta, alpha=1.0):
    u = sum(log_ratios(good)) - sum(log_ratios(bad))
    return minus_log_sigmoid(beta * (u - alpha * (sum(bad["ref_kl"]) - sum(good["ref_kl"]))))


def tgdpo(good, bad, beta, alpha, guide_beta, floor=-math.inf):
    z = 0.0
    for side, sign in ((good, 1), (bad, -1)):
        for ratio, guide, ref in zip(log_ratios(side), side["guide_logprob"], side["ref_logprob"], strict=True):
            z += sign * beta * max(1 + sign * alpha * guide_beta * (guide - ref), floor) * ratio
    return minus_log_sigmoid(z)


def sparsepo(good, bad, beta, l1_reward=0.0, l1_kl=0.0):
    z = norms = 0.0
    for side, sign in ((good, 1), (bad, -1)):
        tokens = zip(log_ratios(side), side["ref_kl"], side["reward_mask"], side["kl_mask"], strict=True)
        for ratio, kl, reward_mask, kl_mask in tokens:
            z += sign * beta * (reward_mask * ratio + kl_mask * kl)
            norms += l1_reward * reward_mask + l1_kl * kl_mask
    return minus_log_sigmoid(z) + norms


def bonbon(good, bad, n, alpha):
    margin = (n - 1) * sum(1 / k for k in range(1, n))
    h = sum(good["logprob"]) - sum(bad["logprob"]) - (sum(good["ref_logprob"]) - sum(bad["ref_logprob"]))
    return alpha * -sum(good["logprob"]) + (1 - alpha) * (h - margin) ** 2


# ---- rewards of single tokens, one response at a time


def token_rewards(old, ref, guide, reward, beta1, beta2, beta3, clip):
    """RTO's equation 4.7; the guide's part is clipped behind its scale."""
    out = [min(max(beta1 * (g - r), -clip), clip) - beta2 * (o - r) for o, r, g in zip(old, ref, guide, strict=True)]
    out[-1] += beta3 * min(max(reward, -10), 10)
    return out


def paid_at_sentence_ends(values, texts, ends):
    """Each value goes to the first token from its own on that ends a sentence, or to the last one."""
    out = [0.0] * len(values)
    for t, value in enumerate(values):
        at = next((s for s in range(t, len(values)) if texts[s].rstrip(" ")[-1:] in ends), len(values) - 1)
        out[at] += value
    return out


def gae(rewards, values, gamma, lam):
    """(advantages, returns) by the sum over all later errors."""
    errors = [r + gamma * v - u for r, u, v in zip(rewards, values, [*values[1:], 0.0], strict=True)]
    advantages = [sum((gamma * lam) ** (s - t) * errors[s] for s in range(t, len(errors))) for t in range(len(errors))]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def value_error(value, old, target, clip):
    near = old + min(max(value - old, -clip), clip)
    return max((value - target) ** 2, (near - target) ** 2) / 2
