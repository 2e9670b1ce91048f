"""The record of a run: what is written goes through `align credit` and gives what the run had, to the last digit."""

import json
import random
from dataclasses import replace

import pytest
import torch
from support import replays
from support.paths import ROOT
from support.recorded import TOKENIZER
from support.replays import assert_replays, experiment_of, ran

from align.commands.credit import credit
from align.data.prompts import Turn
from align.result import samples
from align.result.samples import ReplayError
from align.rollout import tensors
from align.rollout.sources import Collected
from align.run.samples import Record, _numbers

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
ADAPTIVE = "objective={name: gfpo, k: {very_hard: 6, hard: 5, medium: 4, easy: 2, warmup_prompts: 5}}"
GFPO = ROOT / "recipes/gfpo_chain_sum.yaml"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "samples.jsonl"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_record_of_every_recipe_goes_straight_into_credit(recipe, path):
    steps = ran(path, experiment_of(recipe))
    assert_replays(experiment_of(recipe), path, steps)
    taken = {}
    for place, rollout in samples.read(path).items():  # and the sums over the record are the counts
        for number, decision in enumerate(rollout.decisions):
            count = taken.setdefault((rollout.step, number), dict.fromkeys(decision.transforms, 0))
            for by in decision.taken_by:
                if by >= 0:
                    count[decision.transforms[by]] += 1
            assert len(decision.taken_by) == len(decision.weight) == len(rollout.response_ids), place
    for step, batches, _ in steps:
        for number, credited in enumerate(batches[0].credited):
            assert taken[step, number] == credited.signal.removed_by


def with_turns(found):
    """The same, but the first half of each response's tokens but the last is a tool's."""

    def turns(n):
        heard = (Turn("tool", 1, 1 + (n - 1) // 2, "heard"), Turn("assistant", 1 + (n - 1) // 2, n, "said", -0.25, 12))
        return (Turn("assistant", 0, min(n, 1), "said", 0.5, 11), *heard)

    def told(response):
        return replace(response, turns=turns(len(response.ids)))

    if found.pairs:
        pairs = [replace(p, chosen=told(p.chosen), rejected=told(p.rejected)) for p in found.pairs]
        return replace(
            found,
            pairs=pairs,
            batch=tensors.pairs_to_batch(pairs, TOKENIZER, found.batch.progress, tensors.ON_DEMAND),
        )
    every = [replace(rollout, response=told(rollout.response)) for rollout in found.rollouts]
    rated = [rollout for rollout in every if rollout.reward is not None]
    return Collected(tensors.to_batch(rated, TOKENIZER, found.batch.progress, tensors.ON_DEMAND), every, every)


@pytest.mark.parametrize("name", ["gfpo_chain_sum", "composed_chain_sum", "tgdpo_reviews", "rto_reviews"])
def test_responses_of_several_turns(name, path, monkeypatch):
    for name_of_maker in ("collected", "collected_pairs"):
        maker = getattr(replays, name_of_maker)
        changed = lambda *args, maker=maker, **more: with_turns(maker(*args, **more))  # noqa: E731
        monkeypatch.setattr(replays, name_of_maker, changed)
    recipe = ROOT / f"recipes/{name}.yaml"
    steps = ran(path, experiment_of(recipe), unrated=(3,))
    assert_replays(experiment_of(recipe), path, steps)
    heard = 0
    for line, told in zip(credit(experiment_of(recipe), path), samples.read(path).values(), strict=False):
        own = [number >= 0 for number in told.turn_numbers]
        assert line.get("turn", [0]) == told.turn_numbers and [turn.reward for turn in told.turns] == [0.5, None, -0.25]
        heard += (len(own) - sum(own)) * told.rated
        for decision in told.decisions:
            for values in (decision.taken_by, decision.weight, decision.advantage or decision.weight):
                assert [value is not None for value in values] == own
        for values in told.streams.values():
            assert not any(value is not None and not mine for value, mine in zip(values, own, strict=True))
    assert heard == sum(int(credited.signal.environment) for _, batches, _ in steps for credited in batches[0].credited)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"turns": [dict(role="assistant", start=0, end=1)]}, "turns: end at 1, but there are 3 response_ids"),
        ({"turns": [dict(role="tool", start=1, end=3)]}, "turns.0: goes from 1 to 3, and begins at 0"),
        ({"turn": [0, -1]}, "turn: has 2 values, but there are 3"),
        ({"turn": [0, -1, 10**10]}, "turn: has a turn 10000000000 of 3 tokens"),
        ({"turn": [0, -7, 0]}, "turn.1: Input should be greater than or equal to -1"),
        ({"turns": [dict(role="assistant", start=0, end=3, state=2**63)]}, "turns.0.state: Input should be less than"),
        (
            {"turn": [0, -1, -1], "turns": [dict(role="assistant", start=0, end=3)]},
            "turn: does not number the turns of assistant",
        ),
    ],
)
def test_turns_that_do_not_fit_are_named(changed, message, path):
    path.write_text(json.dumps({"group": 0, "response_ids": [1, 2, 3], **changed}))
    with pytest.raises(ReplayError, match=f"jsonl:1: {message}"):
        samples.read(path)


def test_other_programs_may_number_the_turns(path):
    line = {"group": 0, "response_ids": [1, 2, 3, 4], "turn": [0, -1, 1, 1], "sampler_logprob": [-1, None, -1, -1]}
    path.write_text("".join(json.dumps({**line, "reward": reward}) + "\n" for reward in (0.0, 1.0)))
    *lines, summary = credit(experiment_of(GFPO, "objective={name: grpo}"), path)
    assert lines[1]["turn"] == [0, -1, 1, 1] and lines[1]["weight"] == [1, 0, 1, 1] and lines[1]["advantage"][1] == 0
    assert summary["signal"] == {"environment": 2, "generated": 6, "carrying": 6, "taken": summary["signal"]["taken"]}


SEVERAL = """objectives=[{name: grpo}, {name: d3s, rows: 4, share: 0.3, weight: 0.5},
  {name: grpo, add: [{entropy_bonus: {coef: 0.1}}]}]"""
SOURCES = """\
model: {policy: none}
data: {sums: {prompts: none.jsonl}, pairs: {pairs: none.jsonl}}
rewards: {"rewards.length:length_penalty": 1.0}
run: {steps: 1, out: runs/none}
objectives: [{name: dapo, data: sums}, {name: tdpo2, data: pairs}, {name: mapo, data: pairs}]
"""


def test_several_objectives_over_one_batch(path):
    steps = ran(path, experiment_of(GFPO, "objective=null", SEVERAL))
    assert_replays(experiment_of(GFPO, "objective=null", SEVERAL), path, steps)
    assert [d.name for d in next(iter(samples.read(path).values())).decisions] == ["grpo_0", "d3s", "grpo_2"]


def test_each_source_is_replayed_through_its_own_objectives(path, tmp_path):
    (tmp_path / "recipe.yaml").write_text(SOURCES)
    steps = ran(path, experiment_of(tmp_path / "recipe.yaml"))
    assert_replays(experiment_of(tmp_path / "recipe.yaml"), path, steps)
    found = list(samples.read(path).values())
    assert {(r.source, r.chosen is None) for r in found} == {("sums", True), ("pairs", False)}
    (tmp_path / "recipe.yaml").write_text(SOURCES.replace("sums", "others"))
    with pytest.raises(ReplayError, match="source: 'sums' is none of those that .*: 'others', 'pairs'"):
        credit(experiment_of(tmp_path / "recipe.yaml"), path)


@pytest.mark.parametrize("old", ["sampler", "trainer"])
def test_responses_without_a_reward_and_old_log_probabilities(path, old):
    words = (f"sampling.old_logprob={old}", "objective={name: grpo, add: [{kl_policy_ref: {coef: 0.1}}]}")
    steps = ran(path, experiment_of(GFPO, *words), unrated=(0, 5, 9))
    assert_replays(experiment_of(GFPO, *words), path, steps)
    first, second, *_ = samples.read(path).values()
    assert first.reward is None and list(first.streams) == ["sampler_logprob"] and not first.decisions
    assert list(second.streams) == ["sampler_logprob", "ref_logprob", "logprob"]


def test_a_step_without_any_reward(path):
    ran(path, experiment_of(GFPO), unrated=range(32))
    *lines, first, second = credit(experiment_of(GFPO), path)
    assert len(lines) == 64 and not any(line["kept"] for line in lines)
    assert (first["step"], second["step"]) == (1, 2) and first["loss"] == second["loss"] == 0


# ---- what is missing is not zero


def test_tokens_that_no_model_saw_have_no_value(path):
    """D3S: entropies of the rows that are left, log-probabilities now of the tokens that are trained."""
    steps = ran(path, experiment_of(ROOT / "recipes/d3s_chain_sum.yaml"), count=1)
    (credited,) = steps[0][1][0].credited
    for row, rollout in enumerate(samples.read(path).values()):
        kept, trained = bool(credited.batch.kept[row]), credited.trained[row, : len(rollout.response_ids)]
        assert (rollout.entropy is not None) == kept
        if rollout.entropy:
            assert rollout.entropy == pytest.approx(credited.batch.entropy[row, : len(trained)].tolist())
        now = rollout.logprob or [None] * len(trained)
        assert [value is not None for value in now] == trained.tolist()
        assert rollout.ref_logprob is None and rollout.value is None


def test_a_value_that_is_needed_and_null_is_named(path):
    ran(path, experiment_of(ROOT / "recipes/d3s_chain_sum.yaml"), count=1)
    with pytest.raises(ReplayError, match=r"jsonl:\d+: entropy: missing, and top_tokens needs it"):
        credit(experiment_of(GFPO, "objective={name: grpo, add: [{top_tokens: {share: 0.5}}]}"), path)
    lines = credit(experiment_of(GFPO), path)  # GFPO needs what the sampler knows: nothing that a model was asked for
    assert lines[-1]["signal"]["carrying"] > 0


def test_advantages_after_each_transform(path):
    steps = ran(path, experiment_of(ROOT / "recipes/composed_chain_sum.yaml"), count=1)
    (credited,) = steps[0][1][0].credited
    for row, rollout in enumerate(samples.read(path).values()):
        (decision,) = rollout.decisions
        assert decision.transforms == ["keep_top", "group_advantage", "max_variance_rows", "key_tokens", "top_tokens"]
        assert [after is None for after in decision.after] == [True, False, True, False, True]
        given = credited.trace.advantages[1][row, : len(rollout.response_ids)]
        assert torch.tensor(decision.after[1]).equal(given) and decision.after[3] == decision.advantage


# ---- memories


def test_a_memory_goes_on_from_step_to_step(path):
    steps = ran(path, experiment_of(GFPO, ADAPTIVE), count=4)
    assert_replays(experiment_of(GFPO, ADAPTIVE), path, steps)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [i for i, line in enumerate(lines) if "state" in line["objectives"][0]] == [0]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line["step"] == 3))
    with pytest.raises(ReplayError, match="step 3: keep_top remembers .* from the last one with `state`"):
        credit(experiment_of(GFPO, ADAPTIVE), path)
    assert credit(experiment_of(GFPO), path)  # which remembers nothing


def test_a_memory_that_does_not_follow_is_written(path):
    """After a resume from elsewhere, after a rollback, and where not all of a step is recorded."""
    ran(path, experiment_of(GFPO, ADAPTIVE), first=3, count=4)
    first, *others = map(json.loads, path.read_text().splitlines())
    assert len(first["objectives"][0]["state"]["0"]["seen"]) == 8
    assert not any("state" in line["objectives"][0] for line in others)
    steps = ran(path, experiment_of(GFPO, ADAPTIVE), Record(last={"data": 2}), first=3, count=3)
    assert '"state"' not in path.read_text()
    ran(path, experiment_of(GFPO, ADAPTIVE), Record(samples=8), count=4)
    assert path.read_text().count('"state"') == 4
    record = Record(last={"data": steps[0][0] - 1})
    assert '"state"' not in next(record.lines(*steps[0]))
    record = Record(last={"data": steps[0][0]})  # then the run went back
    assert '"state": {"0": {"seen": [' in next(record.lines(*steps[0]))


# ---- how much is recorded


def test_a_bound_takes_whole_groups_by_the_seed(path):
    found = []
    for seed in (0, 0, 1):
        ran(path, experiment_of(GFPO), Record(20, seed), count=6)
        found.append([*samples.read(path).values()])
    assert found[0] == found[1] != found[2]
    groups = [r.group for r in found[0]]
    assert len(groups) == 6 * 16 and all(groups.count(group) == 8 for group in groups)
    assert {r.batch_rows for r in found[0]} == {32}
    assert len({group.split("-")[1] for group in groups}) == 4  # not the same prompts at each step
    ran(path, experiment_of(GFPO), Record(1), count=6)
    assert len(samples.read(path)) == 6 * 8  # one group at least
    ran(path, experiment_of(GFPO), Record("none"))
    assert path.read_text() == ""
    with pytest.raises(ReplayError, match=r"samples.jsonl: no rollouts; .* \(run.samples: none records none\)"):
        credit(experiment_of(GFPO), path)


def test_a_batch_that_is_not_there_as_a_whole_is_told_once(path):
    """Not only on the console: a script that reads the lines sees how many of how many responses they are of."""
    told = []
    ran(path, experiment_of(GFPO), count=3)
    *_, last = credit(experiment_of(GFPO), path, told.append)
    assert told == [] and not {"rows", "batch_rows", "updates"} & set(last)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:56], *lines[64:]]) + '\n{"version": 1, "step": 4, "sou')  # killed in step 4
    *_, first, second, third = credit(experiment_of(GFPO, "optim.updates_per_step=2"), path, told.append)
    assert [said.get("rows") for said in (first, second, third)] == [None, 24, None] and second["batch_rows"] == 32
    assert (third["update"], third["updates"]) == (1, 2)
    assert told == [
        f"{path}:33: step 2: 24 of 32 responses of the batch are here (run.samples bounds them, or lines are missing); "
        "what was taken over all of them, such as its loss, is not what the run had"
    ]
    path.write_text("\n".join([*lines, '{"version": 1, "step": 4, "sou', lines[0]]))
    with pytest.raises(ReplayError, match="samples.jsonl:97: line: Invalid JSON"):
        credit(experiment_of(GFPO), path)


# ---- numbers and lines


def test_numbers_come_back_to_the_bit():
    generator = random.Random(0)
    bits = torch.tensor([generator.randrange(2**32) for _ in range(20_000)], dtype=torch.int64).to(torch.int32)
    values = bits.view(torch.float32)
    back = torch.tensor([float("nan") if v is None else v for v in json.loads(_numbers(values[None], [20_000])[0])])
    finite = values.isfinite()
    assert torch.equal(back[finite], values[finite]) and back[~finite].isnan().all() and finite.sum() > 19_000
    double = torch.rand(1000, dtype=torch.float64)
    assert json.loads(_numbers(double[None], [1000])[0]) == double.tolist()


def test_lines_of_some_steps_are_read_without_the_others(path):
    ran(path, experiment_of(GFPO), count=3)
    path.write_bytes(path.read_bytes().replace(b'"step": 2, "source": "data"', b'"step": 2, not JSON'))
    assert {r.step for r in samples.read(path, {1, 3}).values()} == {1, 3}
    assert samples.steps_of(path) == [1, 2, 3]
    with pytest.raises(ReplayError, match="samples.jsonl:33: "):
        samples.read(path)


def test_lines_of_a_later_version_are_refused_in_words(path):
    path.write_text('{"version": 2, "step": 1, "group": 0, "response_ids": [1]}\n')
    with pytest.raises(ReplayError, match="version: 2 is newer than 1, which this align reads; update"):
        samples.read(path)
