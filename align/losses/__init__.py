"""Losses by name, as YAML writes them."""

from align.losses.loss import (
    Aggregation,
    Constant,
    Current,
    Denominator,
    Loss,
    TokensPerRow,
    Weighted,
    normalise,
    summarised,
)
from align.losses.masked import mask_l1, pair_logistic_masked
from align.losses.pairs import (
    PairError,
    best_of_n,
    chosen_nll,
    pair_logistic,
    pair_logistic_guided,
    pair_logistic_kl,
    pair_logistic_mean,
    pair_squared,
)
from align.losses.regularisers import entropy_bonus, kl_policy_ref
from align.losses.surrogate import clipped_surrogate, sequence_surrogate, weighted_logprob
from align.losses.value import value_loss

POLICY = (clipped_surrogate, sequence_surrogate, weighted_logprob, kl_policy_ref, entropy_bonus, value_loss)
PAIRS = (
    pair_logistic,
    pair_logistic_mean,
    pair_squared,
    pair_logistic_kl,
    pair_logistic_guided,
    pair_logistic_masked,
    mask_l1,
    chosen_nll,
    best_of_n,
)
LOSSES = {loss.__name__: loss for loss in (*POLICY, *PAIRS)}

__all__ = [
    "LOSSES",
    "Aggregation",
    "Constant",
    "Current",
    "Denominator",
    "Loss",
    "PairError",
    "TokensPerRow",
    "Weighted",
    "normalise",
    "summarised",
    *LOSSES,
]
