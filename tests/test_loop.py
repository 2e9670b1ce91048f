"""What the loop does around the engines: passes only for live rows, the log, evaluation, reports of signal."""

import json
import tempfile
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import batch_of

from align.check.requirements import needed_context
from align.config.recipe import RewardFunction, RewardLimits
from align.credit import assign
from align.data.prompts import DataError, Prompt, Prompts, Response
from align.learner.passes import ForwardPasses
from align.losses import kl_policy_ref
from align.metrics.evaluation import comparison, drift, names, pass_at, summarise
from align.metrics.step import rollout_metrics, signal_metrics
from align.objectives import gfpo, grpo, mapo, rto, sparsepo
from align.rollout import rollouts
from align.rollout.journal import Journal
from align.rollout.rollouts import Process, Rollout, Scorer
from align.rollout.sampler import Sampler
from align.rollout.sources import Collected, RolloutSource, SourceBatch, _nothing_rated
from align.run.log import RunLog, _sample_rows
from align.scoring.worker import RewardError, Worker
from align.system.clock import Clock
from align.transforms import Transform, best_and_worst


class CountingLearner:
    """Stands in for the engine to see which rows it is asked for; the engine itself has tests of its own."""

    def __init__(self):
        self.asked, self.quantities = [], []

    def score(self, batch, rows_B, quantities=("logprob",), who="policy"):
        self.asked.append((who, rows_B.nonzero()[:, 0].tolist()))
        self.quantities.append(quantities)
        return {name: torch.full(batch.mask.shape, -1.0).double() for name in quantities}


def annotate(learner, old_from, needs=()):
    return ForwardPasses(learner, old_from, Clock()).for_batch(needs)


WORDS = SimpleNamespace(all_special_ids=[], decode=str, batch_decode=lambda ids, **_: [str(i) for i in ids])


def two_groups():
    """Group 0 is mixed, group 1 constant."""
    batch = batch_of([0] * 4 + [1] * 4, [4, 3, 2, 1] * 2, rewards=[1, 0, 1, 0, 1, 1, 1, 1])
    return replace(batch, sampler_logprob=torch.full(batch.mask.shape, -1.0).double())


def with_kl(objective, rows):
    return replace(objective, losses=(*objective.losses, kl_policy_ref(coef=0.1, rows=rows)))


def test_dropped_and_constant_rows_reach_no_pass():
    learner = CountingLearner()
    passes = ForwardPasses(learner, "trainer", Clock())
    assign(gfpo(k=2), two_groups(), passes.for_batch())
    assert learner.asked == [("policy", [2, 3])]
    assert passes.work == {"pass/old_logprob/rows": 2, "pass/old_logprob/tokens": 3}


def test_old_logprob_of_the_sampler_costs_no_pass():
    learner = CountingLearner()
    assign(gfpo(k=2), two_groups(), annotate(learner, "sampler"))
    assert learner.asked == []


def test_what_the_update_gives_costs_no_pass_but_links_still_get_it():
    learner = CountingLearner()
    credited = assign(gfpo(k=2), two_groups(), annotate(learner, "trainer"), ("old_logprob",))
    assert learner.asked == [] and credited.batch.old_logprob is None
    transform = Transform(
        "reads", lambda batch: replace(batch, kept=batch.old_logprob[:, 0] < 0), needs=("old_logprob",)
    )
    objective = replace(grpo(), chain=(transform, *grpo().chain))
    assign(objective, two_groups(), annotate(learner, "trainer"), ("old_logprob",))
    assert learner.asked == [("policy", list(range(8)))]


@pytest.mark.parametrize("rows, scored", [("kept", [2, 3, 6, 7]), ("all", list(range(8)))])
def test_the_reference_scores_the_rows_that_the_kl_term_acts_on(rows, scored):
    learner = CountingLearner()
    assign(with_kl(gfpo(k=2), rows), two_groups(), annotate(learner, "sampler"))
    assert learner.asked == [("reference", scored)]


def test_two_objectives_share_their_passes():
    learner = CountingLearner()
    passes = annotate(learner, "trainer")
    assign(with_kl(gfpo(k=2), "kept"), two_groups(), passes)
    assign(with_kl(grpo(), "all"), two_groups(), passes)
    assert learner.asked == [
        ("policy", [2, 3]),
        ("reference", [2, 3, 6, 7]),
        ("policy", [0, 1]),
        ("reference", [0, 1, 4, 5]),
    ]


def test_a_link_that_reads_entropy_gets_it_with_the_old_logprob_in_one_pass():
    learner = CountingLearner()
    transform = Transform("reads", lambda batch: replace(batch, kept=batch.entropy[:, 0] < 0), needs=("entropy",))
    objective = replace(grpo(), chain=(transform, *grpo().chain))
    assign(objective, two_groups(), annotate(learner, "trainer", sorted(objective.reads)))
    assert learner.asked == [("policy", list(range(8)))]
    assert set(learner.quantities[0]) == {"entropy", "logprob"}


def test_a_model_is_asked_once_for_all_that_it_says():
    """The value head and the old log-probability of PPO; the reference's own and MaPO's masks."""
    learner, batch = CountingLearner(), replace(two_groups(), guide_logprob=two_groups().sampler_logprob)
    assign(rto(), batch, annotate(learner, "trainer", sorted(rto().reads)))
    asked = dict(zip([who for who, _ in learner.asked], learner.quantities, strict=True))
    assert sorted(asked) == ["policy", "reference"] and set(asked["policy"]) == {"logprob", "value"}
    learner, objective = CountingLearner(), replace(mapo(), chain=(best_and_worst(), *mapo().chain))
    assign(objective, two_groups(), annotate(learner, "sampler", sorted(objective.reads)))
    assert [who for who, _ in learner.asked] == ["reference"]
    assert set(learner.quantities[0]) == {"logprob", "activation_mask"}


def test_what_a_head_gives_is_not_asked_of_the_reference():
    learner, objective = CountingLearner(), replace(sparsepo(), chain=(best_and_worst(), *sparsepo().chain))
    assign(objective, two_groups(), annotate(learner, "sampler", sorted(objective.reads)))
    assert learner.quantities == [("logprob",)]


# ---- what is reported


def rollout(group, index, reward, length=3, correct=False, truncated=False):
    prompt = Prompt([1], f"p{group}", f"p{group}", {})
    response = Response([5] * length, [-1.0] * length, truncated)
    return Rollout(group, index, prompt, response, "x", {"r": reward}, reward, correct)


def test_signal_adds_up_and_counts_what_clipping_and_missing_rewards_took():
    scored = [rollout(0, i, r, length=i + 1) for i, r in enumerate([1.0, 0.0, 1.0, None])]
    batch = rollouts.to_batch([r for r in scored if r.reward is not None], WORDS)
    credited = assign(gfpo(k=2), batch, annotate(CountingLearner(), "sampler"))
    taken = SourceBatch(Collected(batch, [*scored, rollout(1, 0, 1.0, length=5)], scored), [credited])
    found = signal_metrics([taken], {"clipped": 1 / 3})
    assert found == {
        "signal/generated": 15,
        "signal/carrying": 2,
        "signal/taken/dynamic_sampling": 5,
        "signal/taken/unrated": 4,
        "signal/taken/failed": 0,
        "signal/taken/keep_top": 3,
        "signal/taken/group_advantage": 0,
        "signal/taken/clipped": 1,
    }
    assert rollout_metrics([Collected(None, scored)])["response/unrated"] == 1 and rollout_metrics(
        [Collected(None, scored)]
    )["reward/mean"] == pytest.approx(2 / 3)


def failing(group, index, length=3):
    return replace(rollout(group, index, None, length), failed={"r": "took too long"})


def test_responses_whose_reward_failed_are_counted_apart_and_take_no_part():
    scored = [rollout(0, 0, 1.0, 2, correct=True), rollout(0, 1, None, 3), failing(0, 2, 4), rollout(0, 3, 0.0, 5)]
    found = rollout_metrics([Collected(None, scored)])
    assert (found["response/unrated"], found["response/failed"], found["rewards/r/failed"]) == (1, 1, 1)
    assert found["reward/mean"] == 0.5 and found["rewards/r"] == 0.5 and found["correct"] == pytest.approx(1 / 3)
    batch = rollouts.to_batch([r for r in scored if r.reward is not None], WORDS)
    taken = SourceBatch(
        Collected(batch, scored, scored), [assign(grpo(), batch, annotate(CountingLearner(), "sampler"))]
    )
    counts = signal_metrics([taken], {})
    assert (counts["signal/taken/unrated"], counts["signal/taken/failed"]) == (3, 4)
    assert counts["signal/generated"] == 14 and counts["signal/carrying"] == 7
    rows = _sample_rows("1", 1, taken)
    assert [row.get("failed") for row in rows] == [None, None, {"r": "took too long"}, None]
    assert ["kept" in row for row in rows] == [True, False, False, True]


def test_a_failed_response_is_neither_right_nor_wrong():
    right = rollout(0, 0, 1.0, correct=True)
    assert rollouts.mixed([right, failing(0, 1), failing(1, 0), failing(1, 1)]) == []
    assert len(rollouts.mixed([right, failing(0, 1), rollout(0, 2, 0.0)])) == 3
    found = summarise([right, failing(0, 1), failing(1, 0), failing(1, 1)], [right, failing(1, 0)], [1, 2])
    assert found["eval/pass@1"] == found["eval/greedy_pass@1"] == 1.0 and "eval/pass@2" not in found
    assert found["eval/failed"] == 4


def test_a_step_without_any_reward_says_why():
    assert _nothing_rated([rollout(0, 0, None)]) == "no reward function applied to any of 1 responses"
    message = "no response has a reward; on 1 of 2 a reward failed, first 'r': took too long"
    assert _nothing_rated([rollout(0, 0, None), failing(0, 1)]) == message


def test_pass_at_k_is_the_share_of_draws_that_hold_a_correct_one():
    from itertools import combinations

    correct = [True, False, False, True, False]
    for k in range(1, 6):
        draws = list(combinations(correct, k))
        assert pass_at(k, correct) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert pass_at(3, [False] * 4) == 0.0 and pass_at(1, [True] * 4) == 1.0


def test_summary_is_over_prompts_and_its_interval_holds_the_mean():
    sampled = [
        rollout(g, i, float(g == 0), length=2 + g, correct=g == 0, truncated=i == 1) for g in (0, 1) for i in (0, 1)
    ]
    greedy = [rollout(0, 0, 1.0, correct=True), rollout(1, 0, None)]
    found = summarise(sampled, greedy, [1, 2])
    assert found["eval/reward"] == 0.5 and found["eval/length"] == 2.5 and found["eval/truncated"] == 0.5
    assert found["eval/pass@1"] == found["eval/pass@2"] == 0.5
    assert found["eval/greedy_reward"] == 1.0 and found["eval/greedy_pass@1"] == 0.5
    assert found["eval/rewards/r"] == 0.5
    assert {*found, *drift([0], [0.1])} == {*names(["r"], [1, 2])}
    assert found["eval/reward_low"] <= found["eval/reward"] <= found["eval/reward_high"]
    (row,) = [row for row in comparison(found, found | {"eval/reward": 0.6}) if row["name"] == "reward"]
    assert (row["before"], row["after"], row["before_interval"]) == (
        0.5,
        0.6,
        [found["eval/reward_low"], found["eval/reward_high"]],
    )


# ---- the log


@pytest.fixture
def main_process():
    nothing = {"wait_for_everyone": lambda: None, "log": lambda *_, **__: None}
    return SimpleNamespace(is_main_process=True, **nothing)


def test_a_killed_run_s_half_line_does_not_stop_a_resume(tmp_path, main_process):
    rows = [{"step": 0, "eval/reward": 0.1}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 3, "lo')
    (tmp_path / "samples.jsonl").write_text('{"step": 1}\n{"step": 2, "response')
    log = RunLog(tmp_path, main_process, start=1)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[:2])
    assert (tmp_path / "samples.jsonl").read_text() == '{"step": 1}\n'
    assert log.evaluations() == [{"eval/reward": 0.1}]


def test_a_fresh_run_starts_an_empty_log(tmp_path, main_process):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n')
    assert RunLog(tmp_path, main_process, start=0).evaluations() == []
    assert (tmp_path / "metrics.jsonl").read_text() == ""


# ---- before a model is loaded


def test_a_prompt_and_response_longer_than_the_context():
    prompts = Prompts([Prompt([1] * 9, "short", "short", {})], [Prompt([1] * 30, "the long one", "x", {})])
    recipe = SimpleNamespace(sampling=SimpleNamespace(max_response_tokens=35))
    assert needed_context({"data": prompts}, recipe, None) == needed_context({"data": prompts}, recipe, 65) == 65
    with pytest.raises(DataError, match=r"30 tokens.*\(35\) need 65 tokens.*context has 64.*the long one"):
        needed_context({"data": prompts}, recipe, 64)


# ---- dynamic sampling


class Engine:
    """An engine whose responses to prompt [n] are right with the outcomes that `plan` gives to n."""

    def __init__(self, plan):
        self.plan, self.asked = plan, []

    def generate(self, prompts, *, n, temperature, max_tokens, seed):
        self.asked.append([prompt[0] for prompt in prompts])
        return [[Response([int(right)], [-1.0], False) for right in self.plan[prompt[0]]] for prompt in prompts]


@pytest.fixture
def source(tmp_path):
    """Makes a source of rollouts and its engine."""
    right = RewardFunction("right", "planted:first_id", 1.0)
    with closing(Worker(right, RewardLimits())) as worker:
        yield partial(_source, right, worker, tmp_path)


def _source(right, worker, folder, plan, rounds):
    sampling = SimpleNamespace(
        group_size=2,
        temperature=1.0,
        max_response_tokens=1,
        deadline_s=60.0,
        dynamic_sampling=SimpleNamespace(rounds=rounds) if rounds else None,
    )
    recipe = SimpleNamespace(
        sources=lambda: {"data": SimpleNamespace(prompts_per_step=2)},
        run=SimpleNamespace(seed=0, steps=1),
        reward_limits=RewardLimits(),
        sampling=sampling,
    )
    experiment = SimpleNamespace(recipe=recipe, rewards=(right,), correct=SimpleNamespace(reward="right", at_least=1))
    prompts = Prompts([Prompt([n], str(n), str(n), {}) for n in range(len(plan))], [])
    engine = Engine(plan)
    sampler, scorer = Sampler(engine, None, Process(0, 1), sampling), Scorer([worker], experiment, WORDS)
    journal = Journal(Path(tempfile.mkdtemp(dir=folder)), [(0, "test")])
    return RolloutSource("data", 0, prompts, (), recipe, WORDS, sampler, scorer, journal), engine


def outcome(found):
    return sorted((rollout.prompt.ids[0], rollout.index, rollout.correct) for rollout in found)


@pytest.fixture
def one_process(monkeypatch):
    monkeypatch.setattr(rollouts, "gather_object", lambda found: found)


def test_dynamic_sampling_goes_on_until_the_batch_is_full_of_mixed_groups(one_process, source):
    constant, both = (True, True), (True, False)
    plan = [constant] * 6
    made, _ = source(plan, 3)
    order = [prompt.ids[0] for position in range(3) for prompt in made.prompts.step(position, 2, 0)]
    plan = dict.fromkeys(order, constant) | {order[1]: both, order[3]: both}
    made, engine = source([plan[n] for n in range(6)], 3)
    everything, taken = made._rollouts(0, Clock())
    assert engine.asked == [order[0:2], order[2:4]]  # the third round was not needed
    assert {rollout.prompt.ids[0] for rollout in taken} == {order[1], order[3]}
    assert len(everything) == 8 and len({rollout.group for rollout in taken}) == 2


def test_dynamic_sampling_stops_at_its_limit_with_what_there_is(one_process, source):
    constant, both = (False, False), (True, False)
    made, _ = source([constant] * 8, 3)
    order = [prompt.ids[0] for position in range(3) for prompt in made.prompts.step(position, 2, 0)]
    made, engine = source([both if n == order[0] else constant for n in range(8)], 3)
    _, taken = made._rollouts(0, Clock())
    assert len(engine.asked) == 3 and {rollout.prompt.ids[0] for rollout in taken} == {order[0]}
    made, _ = source([constant] * 8, 2)
    everything, taken = made._rollouts(0, Clock())
    assert len(everything) == 8 and outcome(taken) == outcome(everything[4:])  # nothing to learn from: the last round


def test_too_many_failures_of_all_ranks_stop_a_run_and_one_rank_s_own_do_not():
    rolls = [
        Rollout(
            0,
            i,
            Prompt([1], "1", "1", {}),
            Response([i], [-1.0], False),
            "x",
            {"a": None},
            None,
            False,
            {"a": "ValueError: bad"} if i < 3 else {},
        )
        for i in range(6)
    ]
    rollouts.check_failed(rolls, RewardLimits())
    rollouts.check_failed([], RewardLimits(max_failed=0.0))
    with pytest.raises(
        RewardError, match="reward 'a' failed on 3 of 6 rows, .*max_failed is 0.4; .*'x': ValueError: bad"
    ):
        rollouts.check_failed(rolls, RewardLimits(max_failed=0.4))


def test_without_it_every_group_is_taken(one_process, source):
    made, engine = source([(False, False), (True, True), (True, False)], None)
    everything, taken = made._rollouts(0, Clock())
    assert len(engine.asked) == 1 and taken == everything and len(taken) == 4
