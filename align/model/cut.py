"""The part of the vocabulary that is sampled from, where top-p, top-k or min-p cut the rest off.

With a cut the policy *is* the distribution that is sampled: the model's at the sampling temperature, restricted to its
support S and normalised again. Of each sampled token a

    S = {the tokens that min_p, then top_k, then top_p leave}                 of the model's own logits before the token
    log pi(a) = logit(a) - log sum over v in S of exp(logit(v))

So the importance ratio has the same distribution above and below, is 1 before the first update, and its expectation
runs over all that can be sampled. TRL and verl sample from the cut distribution and train on the whole one, whose ratio
leaves out the mass that was cut off. S is held fixed in the gradient: it is a step function of the weights. "Keep
sampling mask" of DeepSeek-V3.2 (arXiv 2512.02556) has the same distributions.

What S cannot give is refused (`align.config.rules`): entropies and KL of the whole vocabulary, log-probabilities of the
reference or a guide, whose own support is another one, answers of a data set, which may lie outside, and further
updates on the same rollouts, after which S has moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from align.config.sampling_keys import Sampling

FEW = 1024  # tokens that are sorted at first: sorting all of a large vocabulary takes longer than the head


@dataclass(frozen=True)
class Cut:
    """How the vocabulary is cut before a token is sampled; the default leaves it whole."""

    top_p: float = 1.0  # the likeliest tokens that together have this probability
    top_k: int = 0  # so many of the likeliest, and those as likely as the last of them; 0: all
    min_p: float = 0.0  # those at least this many times as likely as the likeliest

    @staticmethod
    def of(sampling: Sampling) -> Cut:
        """The cut of a recipe."""
        return Cut(sampling.top_p, sampling.top_k, sampling.min_p)

    @property
    def cuts(self) -> bool:
        """Whether some tokens are left out."""
        return self != Cut()

    @torch.no_grad()
    def inside(self, logits: Tensor) -> Tensor:
        """[...,V] bool: the tokens that can be sampled, of logits at the sampling temperature; the likeliest always is.

        In vLLM's order: min_p, then top_k of what is left, then top_p of the distribution over what is left by then.
        """
        out = torch.ones_like(logits, dtype=torch.bool)
        if self.min_p:
            out = logits >= logits.amax(-1, keepdim=True) + math.log(self.min_p)
        if 0 < self.top_k < logits.shape[-1]:
            out = out & (logits >= logits.topk(self.top_k).values[..., -1:])
        if self.top_p < 1:
            probs = logits.masked_fill(~out, -math.inf).softmax(-1)
            out = out & _nucleus(probs.view(-1, probs.shape[-1]), self.top_p).view(probs.shape)
        return out

    def logits(self, logits: Tensor, sampled: Tensor) -> Tensor:
        """[K,V] logits, -inf outside of the support.

        The tokens `sampled` ([K]) are always inside: at the edge the engine that sampled them may round otherwise.
        """
        if not self.cuts:
            return logits
        inside = self.inside(logits).scatter(-1, sampled[:, None], True)
        return logits.masked_fill(~inside, -math.inf)


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """[K,V] bool: the likeliest tokens, each with less than top_p on the likelier ones; exact, whatever `FEW` is."""
    ordered, index = probs.topk(min(FEW, probs.shape[-1]))
    out = torch.zeros_like(probs, dtype=torch.bool).scatter(-1, index, ordered.cumsum(-1) - ordered < top_p)
    more = ordered.sum(-1) < top_p
    if more.any() and probs.shape[-1] > FEW:
        ordered, index = probs[more].sort(descending=True)
        out[more] = torch.zeros_like(out[more]).scatter(-1, index, ordered.cumsum(-1) - ordered < top_p)
    return out
