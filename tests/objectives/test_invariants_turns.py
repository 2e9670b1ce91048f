"""What others put between the policy's tokens changes no objective: it is read by the model, and by nothing else."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.batches import interleaved, moved, no_model, result_of
from support.compare import close
from support.draws import few, seeds
from support.pair_objectives import EVERY as PAIRS
from support.pair_objectives import drawn as drawn_pairs
from support.policy_family import FAMILY, family_batch
from support.token_rewards import OBJECTIVES as TOKEN_REWARDS
from support.token_rewards import drawn as drawn_token_rewards

from align.credit import assign


def of_family(name, seed):
    batch, logprob = family_batch(seed)
    return FAMILY[name], batch, {"logprob": logprob}


def of_token_rewards(name, seed):
    batch, logprob, value = drawn_token_rewards(seed)
    return lambda: TOKEN_REWARDS[name], batch, {"logprob": logprob, "value": value}


def of_pairs(name, seed):
    objective, batch, current = drawn_pairs(name, seed)
    return lambda: objective, batch, current


CASES = [
    *((of_family, name) for name in FAMILY),
    *((of_token_rewards, name) for name in TOKEN_REWARDS),
    *((of_pairs, name) for name in PAIRS),
]


@pytest.mark.parametrize("draw, name", CASES, ids=[name for _, name in CASES])
@few
@given(seed=seeds, fill=st.sampled_from([0.0, 1e30, -torch.inf, torch.nan]))
def test_what_others_put_in_changes_nothing(draw, name, seed, fill):
    make, batch, current = draw(name, seed)
    loss, gradients, metrics = result_of(make(), batch, **current)
    credited = assign(make(), batch, no_model)
    wide, place = interleaved(batch, seed, fill)
    wide_loss, wide_gradients, wide_metrics = result_of(
        make(), wide, **{field: moved(value, place, 3, fill) for field, value in current.items()}
    )
    wide_credited = assign(make(), wide, no_model)
    close(wide_loss, loss)
    for field, gradient in gradients.items():
        close(wide_gradients[field], moved(gradient, place, 3, 0.0))
    assert wide_metrics == pytest.approx(metrics, nan_ok=True)
    if credited.batch.advantage is not None:
        close(wide_credited.batch.advantage.gather(1, place)[batch.mask], credited.batch.advantage[batch.mask])
    assert replace(wide_credited.signal, environment=0) == replace(credited.signal, environment=0)
    assert wide_credited.signal.environment == int((~wide.mask).sum())
