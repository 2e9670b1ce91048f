"""Losses that several papers share; `loss.py` is their type. A paper's own loss stands in its file in `objectives/`."""

from align.losses.loss import Aggregation, Current, Denominator, Loss, TokenWeights
from align.losses.pairs import PairError, chosen_nll, pair_logistic, pair_squared
from align.losses.regularisers import entropy_bonus, kl_policy_ref
from align.losses.surrogate import clipped_surrogate, sequence_surrogate
from align.losses.value import value_loss
