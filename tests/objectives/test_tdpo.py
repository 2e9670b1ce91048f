"""TDPO: what it logs, and the limits where it is DPO."""

from hypothesis import given
from support.batches import random_pairs, result_of
from support.compare import exactly, same
from support.draws import few, seeds
from support.pair_goldens import on_b

from align.objectives import dpo, tdpo1, tdpo2


def test_golden_divergences_are_logged_by_side():
    metrics = on_b(tdpo1(beta=0.8))[2]
    assert metrics["kl_ref_policy/chosen"] == exactly(0.1559209975)
    assert metrics["kl_ref_policy/rejected"] == exactly(0.2054077935)


@few
@given(seed=seeds)
def test_tdpo2_is_tdpo1_in_value_at_alpha_1_and_dpo_at_alpha_0(seed):
    batch, current = random_pairs(seed)
    fields = {"logprob": current["logprob"], "ref_kl": current["ref_kl"]}
    one, two, none, plain = (
        result_of(objective, batch, **fields)
        for objective in (tdpo1(beta=0.8), tdpo2(beta=0.8, alpha=1), tdpo2(beta=0.8, alpha=0), dpo(beta=0.8))
    )
    same(two[0], one[0])
    same(two[1]["logprob"], one[1]["logprob"])
    rejected = ~batch.chosen
    same(two[1]["ref_kl"][rejected], one[1]["ref_kl"][rejected])
    assert not two[1]["ref_kl"][batch.chosen].any()
    assert (one[1]["ref_kl"][batch.chosen[:, None] & batch.mask] < 0).all()
    same(none[0], plain[0])
    same(none[1]["logprob"], plain[1]["logprob"])
    assert not none[1]["ref_kl"].any()
