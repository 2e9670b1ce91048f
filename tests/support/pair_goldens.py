"""Golden fixtures of the preference objectives: A (log-probabilities), B (logits of three tokens), BoNBoN's sums."""

from dataclasses import replace

import torch

from align.credit import assign
from align.losses import Current
from support.batches import batch_of, no_model, result_of, widened
from support.compare import matrix

LN2 = 0.6931471805599453
POLICY = matrix([-0.9, -1.6, -0.4], [-1.3, -0.8, -7.3])
REF = matrix([-1.1, -1.5, -0.7], [-1.0, -1.2, -9.9])
GUIDE = matrix([-0.6, -2.0, -0.3], [-1.8, -1.0, -5.5])


def fixture_a(**changed):
    batch = replace(batch_of([0, 0], [3, 2]), chosen=torch.tensor([True, False]))
    return replace(batch, **{"ref_logprob": REF, "guide_logprob": GUIDE, **changed})


def on_a(objective, policy=POLICY, **changed):
    """(loss, gradient of the log-probabilities, metrics)"""
    loss, gradients, metrics = result_of(objective, fixture_a(**changed), logprob=policy)
    return float(loss), gradients["logprob"], metrics


P = [[[1, 0, -1], [0.5, 0.5, 0], [0, 0, 0]], [[0, 1, 0], [2, 0, 0], [9, 9, 9]]]
R = [[[0.5, 0, -0.5], [0, 1, 0], [0, 0, 0]], [[0, 0.5, 0.5], [1, 0, 0], [1, 2, 3]]]
Y = torch.tensor([[0, 1, 0], [2, 0, 0]])

MASKS = {  # the last ones are of padding
    "reward_mask": matrix([0.5, 0, 5], [1.2, 0.3, 5]),
    "kl_mask": matrix([0, 0.7, 5], [0.4, 0, 5]),
}

COMMON = dict.fromkeys(MASKS, MASKS["reward_mask"])


def read_b(logits=P):
    """{logprob, ref_logprob, ref_kl} of logits, by their definitions."""
    policy, ref = torch.as_tensor(logits, dtype=torch.float64).log_softmax(-1), matrix(*R).log_softmax(-1)
    picked = [x.gather(-1, Y[..., None])[..., 0] for x in (policy, ref)]
    return {"logprob": picked[0], "ref_logprob": picked[1], "ref_kl": (ref.exp() * (ref - policy)).sum(-1)}


def fixture_b(**changed):
    batch = replace(batch_of([0, 0], [2, 2]), chosen=torch.tensor([True, False]))
    batch = widened(batch, 1, 7.7)
    return replace(batch, ref_logprob=read_b()["ref_logprob"], **changed)


def on_b(objective, batch_masks=False, **current):
    """result_of fixture B, with the masks where they belong."""
    masks = {name: current.pop(name) for name in MASKS if name in current}
    fields = {name: value for name, value in read_b().items() if name != "ref_logprob"} | current
    if batch_masks:
        return result_of(objective, fixture_b(**masks), **fields)
    return result_of(objective, fixture_b(), **fields, **masks)


def on_bonbon(objective, policy=(-42.0, -55.0), ref=(-45.0, -50.0)):
    """The golden's sums, spread over two and three tokens: averages would be others."""

    def spread(best, worst):
        return matrix([0.25 * best, 0.75 * best, 1e6], [0.5 * worst, 0.2 * worst, 0.3 * worst])

    batch = replace(batch_of([0, 0], [2, 3]), chosen=torch.tensor([True, False]), ref_logprob=spread(*ref))
    loss, gradients, metrics = result_of(objective, batch, logprob=spread(*policy))
    return float(loss), gradients["logprob"], metrics


def logits_of(objective, batch, **fields):
    """[P] the margin of each pair, in the order of their groups."""
    credited = assign(objective, batch, no_model)
    term = credited.terms[0]
    return term.loss.measure(Current(**fields), credited.batch, term.token_weights)["logit"]
