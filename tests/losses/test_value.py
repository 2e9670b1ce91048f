"""The value head and the value loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import oracle
from support.batches import batch_of, result_of
from support.compare import exactly, row
from support.draws import few, seeds
from support.hidden_states import config, states
from support.token_rewards import COLUMNS, INF, NEW, NEW_VALUE, drawn, golden, token_lists

from align.losses import value_loss
from align.losses.value import Value, ValueHead
from align.objectives import Objective, rto


@few
@given(seed=seeds, clip=st.sampled_from([0.1, 0.3, INF]), mode=st.sampled_from(["token-mean", "seq-mean-token-mean"]))
def test_the_value_loss_is_the_oracle_s_and_its_gradient_finite_differences(seed, clip, mode):
    batch, logprob, value = drawn(seed)
    batch = replace(batch, returns=batch.value + logprob)
    objective = Objective("v", (), (value_loss(clip=clip, coef=0.7, aggregation=mode),))
    losses = [
        [oracle.value_error(*token, clip) for token in zip(*tokens, strict=True)]
        for tokens in token_lists(replace(batch, entropy=value), "entropy", "value", "returns")
    ]
    expected = 0.7 * oracle.aggregate(losses, [True] * 12, mode)
    loss, gradients, _ = result_of(objective, batch, logprob=logprob, value=value)
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    assert not gradients["logprob"].any()

    def at(new):
        return float(result_of(objective, batch, logprob=logprob, value=new)[0])

    for i, t in batch.mask.nonzero().tolist()[::5]:
        step = torch.zeros_like(value)
        step[i, t] = 1e-6
        slope = (at(value + step) - at(value - step)) / 2e-6
        assert float(gradients["value"][i, t]) == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_a_clipped_value_that_is_too_good_gets_no_gradient():
    """The pessimistic one of the two counts: beyond the clip only moves away from the return are punished."""
    batch = replace(batch_of([0], [2], value=[[0.0, 0.0]]), returns=row(1.0, -1.0))
    _, gradients, _ = result_of(
        Objective("v", (), (value_loss(clip=0.2, aggregation="token-mean"),)),
        batch,
        logprob=row(-1, -1),
        value=row(0.5, 0.5),
    )
    assert gradients["value"].tolist() == [[0.0, 0.75]]


def test_the_value_loss_logs_what_the_head_says():
    _, _, metrics = result_of(rto(), golden(), logprob=NEW, value=NEW_VALUE)
    returns = COLUMNS["clip"][4]
    assert metrics["value"] == exactly((0.9 + 0.1 + 0.9) / 3) and metrics["returns"] == exactly(np.mean(returns))
    assert metrics["value_error"] == exactly(np.abs(np.array(returns) - [0.9, 0.1, 0.9]).mean())


def test_the_value_starts_at_0_and_reads_the_last_layer():
    head = Value("shared", None).build(config())
    hidden = states()
    assert not head(hidden)["value"].any()
    with torch.no_grad():
        head.linear.weight.fill_(1.0)
        head.linear.bias.fill_(2.0)
    torch.testing.assert_close(head(hidden)["value"], hidden[-1].sum(-1) + 2)


@pytest.mark.parametrize("kind", ["shared", "detached"])
def test_the_gradient_of_the_value_reaches_the_policy_where_it_is_shared(kind):
    head = Value(kind, None).build(config())
    torch.nn.init.ones_(head.linear.weight)
    hidden = [h.requires_grad_() for h in states()]
    head(hidden)["value"].sum().backward()
    assert head.linear.weight.grad.any() and head.linear.bias.grad.any()
    assert (hidden[-1].grad is not None) == (kind == "shared")
    assert all(h.grad is None for h in hidden[:-1])


def test_a_head_that_starts_at_0_can_learn():
    head = ValueHead(64, detached=True)
    hidden, target = states(), torch.randn(3, 5, generator=torch.Generator().manual_seed(9))
    optimizer = torch.optim.SGD(head.parameters(), lr=0.05)
    losses = []
    for _ in range(50):
        loss = ((head(hidden)["value"] - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
