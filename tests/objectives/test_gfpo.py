"""GFPO: golden values A2 and A3, ties, adaptive k, what its metrics keep, and the limit that is GRPO."""

import timeit
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import oracle
from support.batches import batch_of, loss_of, no_model, random_batch
from support.compare import close
from support.draws import seeds

from align.batch import Batch
from align.config.compose import build_objective
from align.config.recipe_file import ConfigError, RecipeFile
from align.credit import assign
from align.losses.loss import Constant, TokensPerRow
from align.objectives import gfpo, grpo
from align.objectives.gfpo import AdaptiveK, DifficultyTracker, keep_top

LENGTH = [120, 80, 200, 80, 150, 60, 300, 100]
REWARD = [1.0, 0, 1, 1, 0, 0, 1, 1]
SHAPED = [0.9, -0.8, 0.7, 1, -0.5, -1, 0.6, 0.95]


def a2(rewards=REWARD, **args):
    """(kept rows, advantage of each row, loss at ratio 1) of A2's group of eight."""
    batch = batch_of([0] * 8, LENGTH, rewards=rewards)
    batch = replace(batch, old_logprob=torch.zeros_like(batch.weight))
    objective = gfpo(**args)
    credited = assign(objective, batch, no_model)
    kept = credited.batch.kept.nonzero()[:, 0].tolist()
    return kept, credited.batch.advantage[:, 0].numpy(), float(loss_of(objective, batch, batch.old_logprob)[0])


def test_shortest():
    kept, advantage, _ = a2(k=4)
    assert kept == [1, 3, 5, 7]
    np.testing.assert_allclose(advantage, [0, -1, 0, 1, 0, -1, 0, 1], atol=1e-12)
    assert a2(k=4, std="sample", eps=1e-6)[1][3] == pytest.approx(0.8660239038, abs=1e-9)


def test_all_of_the_group():
    np.testing.assert_allclose(a2(k=8)[1], np.where(np.array(REWARD) > 0, 0.7745966692, -1.2909944487), atol=1e-9)
    sample = a2(k=8, std="sample", eps=1e-6)[1]
    np.testing.assert_allclose(sample[:2], [0.7245674, -1.2076124], atol=1e-7)


def test_denominator_counts_all_responses_or_the_kept_ones():
    assert a2(k=4, eps=1e-6)[2] == pytest.approx(-0.0366971743, abs=1e-9)
    assert a2(k=4, eps=1e-6, denominator="selected")[2] == pytest.approx(-0.12499975, abs=1e-9)
    assert a2(k=4, eps=1e-6, aggregation=Constant(constant=1.0))[2] == pytest.approx(-40.0, abs=1e-4)


def test_a_tie_at_the_border_goes_to_the_first_row():
    kept, advantage, _ = a2(k=2)
    assert kept == [1, 5] and not advantage.any()  # keeping row 3 instead would give -1 and +1


def test_token_efficiency():
    kept, advantage, _ = a2(k=4, metric="token_efficiency")
    assert kept == [0, 2, 3, 7] and not advantage.any()
    kept, advantage, _ = a2(k=6, metric="token_efficiency")
    assert kept == [0, 1, 2, 3, 6, 7]
    np.testing.assert_allclose(advantage[[3, 1]], [0.4472135955, -2.2360679775], atol=1e-9)


def test_token_efficiency_of_shaped_rewards():
    kept, advantage, _ = a2(rewards=SHAPED, k=6, metric="token_efficiency", eps=1e-6)
    assert kept == [0, 2, 3, 4, 6, 7]
    golden = [0.5662114955, 0, 0.1779521843, 0.7603411512, -2.1516036831, 0, -0.0161774713, 0.6632763234]
    np.testing.assert_allclose(advantage, golden, atol=1e-9)


def test_an_all_wrong_group_keeps_its_longest_under_token_efficiency():
    batch = batch_of([0] * 6, [100, 4000, 5000, 800, 2500, 300], rewards=[-1, -1, -0.5, -0.5, -0.9, -0.7])
    kept = keep_top(k=3, metric="token_efficiency").apply(batch).kept
    assert kept.nonzero()[:, 0].tolist() == [1, 2, 4]


# ---- adaptive difficulty


def test_adaptive_goldens():
    tracker = DifficultyTracker(AdaptiveK(warmup_prompts=4))
    means = [0.5, 0.9, 0.1, 0.7, 0.3, 1.0, 0.0, 0.6, 0.6, 0.2]
    one_by_one = [int(tracker.update(torch.tensor([mean], dtype=torch.float64))) for mean in means]
    assert one_by_one == [8, 8, 8, 6, 8, 4, 8, 6, 6, 8]
    assert (
        DifficultyTracker(AdaptiveK(warmup_prompts=4)).update(torch.tensor(means, dtype=torch.float64)).tolist()
        == one_by_one
    )


def test_adaptive_saturates_on_atoms():
    """Where three quarters of all prompts fail, quartiles are 0 and a failing prompt counts as easy."""
    tracker = DifficultyTracker(AdaptiveK(warmup_prompts=1))
    tracker.load_state_dict({"seen": [0.0] * 8 + [0.5]})
    assert tracker.update(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist() == [4, 4]
    tracker.load_state_dict({"seen": [1.0] * 8 + [0.25]})
    assert tracker.update(torch.tensor([0.5], dtype=torch.float64)).tolist() == [8]


def test_adaptive_keeps_each_prompts_own_number_and_sees_all_rewards():
    lengths = [9, 8, 7, 6, 5, 4, 3, 2] * 2
    rewards = [0.0] * 8 + [1.0] * 8
    transform = keep_top(k=AdaptiveK(very_hard=6, hard=5, medium=4, easy=2, warmup_prompts=2))
    batch = batch_of([0] * 8 + [1] * 8, lengths, rewards=rewards)
    kept = transform.apply(batch).kept.view(2, 8).sum(1).tolist()
    assert kept == [6, 2]  # warming up: very hard; then 1.0 is in the top quarter of [0, 1]
    assert transform.state.state_dict() == {"seen": [0.0, 1.0]}


def test_adaptive_with_every_k_the_group_size_is_grpo():
    batch, logprob = random_batch(5)
    all_of_them = AdaptiveK(very_hard=4, hard=4, medium=4, easy=4, warmup_prompts=1)
    for a, b in zip(loss_of(gfpo(k=all_of_them), batch, logprob), loss_of(grpo(), batch, logprob), strict=True):
        assert torch.equal(a, b)


# ---- invariants


@pytest.mark.parametrize("metric", ["shortest", "token_efficiency"])
@given(seed=st.integers(0, 10_000), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_k_of_the_whole_group_is_grpo_bit_for_bit(metric, seed, dtype):
    batch, logprob = random_batch(seed, dtype=dtype)
    for a, b in zip(loss_of(gfpo(k=4, metric=metric), batch, logprob), loss_of(grpo(), batch, logprob), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("metric", ["shortest", "token_efficiency"])
@given(seed=st.integers(0, 10_000), k=st.integers(2, 4))
def test_advantages_are_the_oracle(metric, seed, k):
    batch, _ = random_batch(seed)
    got = assign(gfpo(k=k, metric=metric), batch, no_model).batch.advantage[:, 0].tolist()
    for g in range(3):
        rows = slice(4 * g, 4 * g + 4)
        expected = oracle.gfpo_advantages(batch.reward[rows].tolist(), batch.length[rows].tolist(), k, metric)
        assert got[rows] == pytest.approx(expected, abs=1e-12)


@given(seed=st.integers(0, 10_000))
def test_kept_advantages_have_mean_0_and_population_variance_1_or_0(seed):
    batch, _ = random_batch(seed)
    credited = assign(gfpo(k=3), batch, no_model)
    for g in range(3):
        rows = credited.batch.kept & (batch.group == g)
        advantage = credited.batch.advantage[rows, 0]
        assert float(advantage.mean()) == pytest.approx(0, abs=1e-12)
        assert float(advantage.var(correction=0)) == pytest.approx(1) or not advantage.any()
    assert not credited.batch.advantage[~credited.batch.kept].any()


def test_adding_a_constant_to_rewards_changes_efficiency_but_not_shortest():
    shifted = [r + 10 for r in SHAPED]
    np.testing.assert_allclose(a2(SHAPED, k=4)[1], a2(shifted, k=4)[1], atol=1e-9)
    efficient = [a2(r, k=4, metric="token_efficiency")[0] for r in (SHAPED, shifted)]
    assert efficient[0] != efficient[1]


def test_k_must_fit_the_group():
    transform = keep_top(k=5)
    with pytest.raises(ValueError, match="at most the group size"):
        transform.check(4)
    transform.check(5)


def test_rows_dropped_before_are_not_kept():
    batch = batch_of([0] * 4, [1, 2, 3, 4], rewards=[1.0, 0, 1, 0])
    batch = replace(batch, kept=torch.tensor([False, True, True, True]))
    assert keep_top(k=2).apply(batch).kept.tolist() == [False, True, True, False]


AGGREGATIONS = {
    "token-mean": "token-mean",
    "seq-mean-token-mean": "seq-mean-token-mean",
    "seq-mean-token-sum": "seq-mean-token-sum",
    "tokens_per_row": TokensPerRow(tokens_per_row=6),
    "constant": Constant(constant=10),
}


@given(seed=seeds, factor=st.integers(2, 5))
def test_longer_responses_in_proportion_keep_the_same_rows(seed, factor):
    batch, _ = random_batch(seed)
    lengths, rewards = batch.length.tolist(), batch.reward.tolist()
    longer = batch_of(batch.group.tolist(), [factor * n for n in lengths], rewards=rewards)
    for metric in ("shortest", "token_efficiency"):
        transform = gfpo(k=3, metric=metric).chain[0]
        assert torch.equal(transform.apply(longer).kept, transform.apply(batch).kept)


@given(seed=seeds, shift=st.integers(-5, 5), scale=st.sampled_from([0.5, 2.0, 4.0]))
def test_shortest_sees_rewards_up_to_shift_and_scale(seed, shift, scale):
    batch, _ = random_batch(seed)
    batch = replace(batch, old_logprob=batch.weight)
    moved = replace(batch, reward=batch.reward * scale + shift)
    advantages = [assign(gfpo(k=3), b, no_model).batch.advantage for b in (batch, moved)]
    torch.testing.assert_close(*advantages, atol=1e-12, rtol=1e-9)


@given(seed=seeds, k=st.integers(2, 4))
def test_the_full_denominator_does_not_depend_on_k(seed, k):
    batch, _ = random_batch(seed)
    batch = replace(batch, old_logprob=batch.weight)
    counts = {}
    for name, aggregation in AGGREGATIONS.items():
        (term,) = assign(gfpo(k=k, aggregation=aggregation), batch, no_model).terms
        counts[name] = term.token_weights.count
    tokens = int(batch.mask.sum())
    assert list(counts.values()) == [tokens, 12, 12, 12, 10]


@given(seed=seeds, k=st.integers(2, 4))
def test_zero_mode_is_drop_mode_with_the_denominator_kept(seed, k):
    """Dropped rows with credit 0 and no dropped rows at all: the same gradient over the same count."""
    batch, logprob = random_batch(seed)
    _, gradient = loss_of(gfpo(k=k), batch, logprob)
    kept = assign(gfpo(k=k), batch, no_model).batch.kept.nonzero()[:, 0]
    alone = batch.rows(kept)
    _, dropped = loss_of(grpo(aggregation=Constant(constant=float(batch.mask.sum()))), alone, logprob[kept])
    expected = torch.zeros_like(gradient)
    expected[kept] = dropped
    close(gradient, expected)


@given(seed=seeds, k=st.integers(2, 4))
def test_counting_the_kept_rows_is_dropping_and_forgetting_the_rest(seed, k):
    batch, logprob = random_batch(seed)
    kept = assign(gfpo(k=k), batch, no_model).batch.kept.nonzero()[:, 0]
    for aggregation in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum"):
        loss, gradient = loss_of(gfpo(k=k, aggregation=aggregation, denominator="selected"), batch, logprob)
        alone, expected = loss_of(grpo(aggregation=aggregation), batch.rows(kept), logprob[kept])
        close(loss, alone)
        close(gradient[kept], expected)


def test_an_empty_response_is_as_efficient_as_one_token():
    batch = batch_of([0] * 3, [0, 4, 4], rewards=[0.0, -1.0, 1.0])
    transform = gfpo(k=2, metric="token_efficiency").chain[0]
    assert transform.apply(batch).kept.tolist() == [True, False, True]
    batch = batch_of([0] * 3, [0, 1, 4], rewards=[-1.0, -2.0, -8.0])
    assert transform.apply(batch).kept.tolist() == [True, True, False]


# ---- quartiles without sorting again


@given(st.lists(st.sampled_from([0.0, 0.1, 0.125, 1 / 3, 0.5, 0.7, 1.0, 1e-9, -2.5]), min_size=1, max_size=60))
def test_quartiles_are_numpys_to_the_bit(means):
    tracker = DifficultyTracker(AdaptiveK(warmup_prompts=1))
    for i, mean in enumerate(means):
        tracker.update(torch.tensor([mean], dtype=torch.float64))
        found = [tracker._quantile(q) for q in (0.25, 0.5, 0.75)]
        assert found == np.percentile(means[: i + 1], [25, 50, 75]).tolist()


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60))
def test_quartiles_of_any_means_are_numpys_to_the_bit(means):
    tracker = DifficultyTracker(AdaptiveK())
    tracker.load_state_dict({"seen": means})  # as earlier versions saved them, unsorted
    found = [tracker._quantile(q) for q in (0.25, 0.5, 0.75)]
    assert found == np.percentile(means, [25, 50, 75]).tolist()


def test_a_long_history_costs_little():
    tracker = DifficultyTracker(AdaptiveK())
    tracker.load_state_dict({"seen": np.random.default_rng(0).random(640_000).tolist()})
    prompts = torch.rand(64, dtype=torch.float64)
    seconds = min(timeit.repeat(lambda: tracker.update(prompts), number=1, repeat=3))
    assert seconds < 0.5  # sorted for each prompt, it was 3 s


# ---- a metric of one's own


def brevity(batch: Batch) -> torch.Tensor:
    return -batch.length.double()


def by_reward(batch: Batch) -> torch.Tensor:
    return batch.reward


def two_each(batch: Batch) -> torch.Tensor:
    return torch.zeros(len(batch.group), 2)


def not_finite(batch: Batch) -> torch.Tensor:
    return batch.reward / 0


def a_list(batch: Batch) -> torch.Tensor:
    return [0.0] * len(batch.group)


@given(seed=seeds, k=st.integers(2, 4))
def test_a_metric_of_ones_own_keeps_its_highest(seed, k):
    batch, _ = random_batch(seed)
    assert torch.equal(keep_top(k=k, metric=brevity).apply(batch).kept, keep_top(k=k).apply(batch).kept)
    kept = keep_top(k=k, metric=by_reward).apply(batch).kept
    for g in range(3):
        rows = batch.group == g
        best = batch.reward[rows].sort(descending=True).values
        assert batch.reward[rows & kept].sort(descending=True).values.tolist() == best[:k].tolist()


def build(**keys):
    return build_objective({"name": "gfpo", **keys}, RecipeFile({}), ("objective",))


@pytest.fixture
def my_metrics(tmp_path, monkeypatch):
    """A module of the user's; the first function is fine, the others are not, or must not be called."""
    (tmp_path / "my_metrics.py").write_text(
        "import sys\nfrom torch import Tensor\nfrom align.batch import Batch\n"
        "def brevity(batch: Batch) -> Tensor:\n    return -batch.length.double()\n"
        "def untyped(batch):\n    sys.exit('called')\n"
        "def misspelt(batch: 'Btach') -> Tensor:\n    sys.exit('called')\n"
        "def gives_a_list(batch: Batch) -> list:\n    sys.exit('called')\n"
        "number = 3\n"
    )
    (tmp_path / "my_exit.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_recipe_names_it_by_its_dotted_path(my_metrics):
    batch, logprob = random_batch(1)
    plain = loss_of(gfpo(k=2), batch, logprob)
    (same,) = build_objective(
        {"chain": [{"keep_top": {"k": 2, "metric": "my_metrics:brevity"}}], "loss": {"kl_policy_ref": {"coef": 1}}},
        *(RecipeFile({}), ("objective",)),
    ).chain
    assert torch.equal(same.apply(batch).kept, keep_top(k=2).apply(batch).kept)
    for a, b in zip(loss_of(build(k=2, metric="my_metrics:brevity"), batch, logprob), plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "metric, says",
    [
        ("my_metrics:untyped", "my_metrics:untyped does not say what it returns; write `-> Tensor` behind"),
        ("my_metrics:misspelt", "annotations that cannot be read: NameError: name 'Btach' is not defined"),
        ("my_metrics:gives_a_list", "returns list.*, as it says, which cannot stand here; name one of Tensor"),
        ("my_metrics:number", "is not a function"),
        ("my_metrics:nothing", "no attribute 'nothing'"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        ("my_exit:f", "left with exit code|importing it raised SystemExit"),
        ("subprocess:getoutput", "does not say what it returns"),
        ("builtins:print", "is not a function"),
        ("rm -rf:x", "is not a dotted path"),
        ("shortst", "Input should be 'shortest' or 'token_efficiency'"),
    ],
)
def test_what_is_no_metric_is_refused_before_it_is_called(my_metrics, metric, says):
    with pytest.raises(ConfigError, match=says):
        build(k=2, metric=metric)


def test_in_python_the_function_itself_is_given():
    with pytest.raises(ValueError, match="no metric is called 'my_metrics:brevity'; write .* or a function"):
        gfpo(k=2, metric="my_metrics:brevity")
    batch, _ = random_batch(1)
    kept = keep_top(k=2, metric=lambda batch: -batch.length).apply(batch).kept
    assert torch.equal(kept, keep_top(k=2).apply(batch).kept)


@pytest.mark.parametrize("metric", [two_each, not_finite, a_list])
def test_scores_that_are_none_are_named(metric):
    batch = batch_of([0] * 3, [1, 2, 3], rewards=[0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match=rf"the metric {metric.__name__} gave .*one finite number for each of 3 resp"):
        keep_top(k=2, metric=metric).apply(batch)
