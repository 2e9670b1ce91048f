"""`python -m align credit`: golden values through files, what may be missing, and how mistakes are named."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import random_batch
from typer.testing import CliRunner

from align.__main__ import app
from align.commands.credit import credit
from align.config.experiment import load_experiment
from align.result.samples import ReplayError

RECIPE = """\
model: {policy: none}
data: {prompts: none.jsonl}
rewards: {"rewards.length:length_penalty": 1.0}
run: {steps: 1, out: runs/none}
sampling: {group_size: 8, old_logprob: OLD}
"""

# golden A2 of specs/policy.md
LENGTH = [120, 80, 200, 80, 150, 60, 300, 100]
REWARD = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]

# golden A1
OLD = [[-1, -0.5, -2], [-0.7, -1.2]]
NEW = [[-0.7, -0.6, -2.5], [-0.4, -1]]
REF = [[-0.9, -0.6, -2.2], [-0.6, -1.1]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("replay")


@pytest.fixture
def replay(folder):
    """A function: (lines of output, summary) of rollouts under an objective, read from files."""

    def run(rollouts, objective, old="sampler"):
        rows = rollouts if isinstance(rollouts, str) else "".join(json.dumps(row) + "\n" for row in rollouts)
        several = "objectives" if objective.startswith("[") else "objective"
        (folder / "recipe.yaml").write_text(RECIPE.replace("OLD", old) + f"{several}: {objective}\n")
        (folder / "rollouts.jsonl").write_text(rows, encoding="utf-8")
        *lines, summary = credit(load_experiment(folder / "recipe.yaml"), folder / "rollouts.jsonl")
        return lines, summary

    return run


def a2(rewards=REWARD, lengths=LENGTH, logprob=-1.0):
    """A2's group of eight at ratio 1."""
    return [
        {"group": "p0", "response_ids": [5] * n, "reward": r, "sampler_logprob": [-1.0] * n, "logprob": [logprob] * n}
        for n, r in zip(lengths, rewards, strict=True)
    ]


def a1(**fields):
    """A1's two rows, whose advantages are 1 and -1; fields are given ragged."""
    rows = [{"group": 0, "response_ids": [1, 2, 3], "reward": 1}, {"group": 0, "response_ids": [4, 5], "reward": -1}]
    for name, values in {"sampler_logprob": OLD, "logprob": NEW, **fields}.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def exactly(value):
    return pytest.approx(value, abs=1e-9)


# ---- golden values


@pytest.mark.parametrize(
    "arguments, golden, count",
    [
        ("eps: 1.0e-6", -0.0366971743, 1090),
        ("eps: 1.0e-6, denominator: selected", -0.12499975, 320),
        ("eps: 1.0e-6, aggregation: {constant: 1}", -39.99992, 1),
    ],
)
def test_a2_loss(replay, arguments, golden, count):
    _, summary = replay(a2(), f"{{name: gfpo, k: 4, {arguments}}}")
    assert summary["loss"] == exactly(golden)
    assert summary["count"] == count
    assert summary["unit"] == ("constant" if count == 1 else "token")


def test_a2_rows(replay):
    lines, summary = replay(a2(), "{name: gfpo, k: 4}")
    assert [line["kept"] for line in lines] == [False, True, False, True, False, True, False, True]
    assert [line["advantage"] for line in lines] == [
        [exactly(a)] * n for a, n in zip([0, -1, 0, 1, 0, -1, 0, 1], LENGTH, strict=True)
    ]
    assert [line["weight"] for line in lines] == [
        [float(line["kept"])] * n for line, n in zip(lines, LENGTH, strict=True)
    ]
    taken = {"keep_top": 770, "group_advantage": 0, "clipped_surrogate": 0}
    assert summary["signal"] == {"generated": 1090, "carrying": 320, "taken": taken}


def test_a2_ties_go_to_the_first_line(replay):
    """Rows 1 and 3 have 80 tokens; keeping row 3 would give -1 and +1."""
    lines, summary = replay(a2(), "{name: gfpo, k: 2}")
    assert [i for i, line in enumerate(lines) if line["kept"]] == [1, 5]
    assert summary["loss"] == 0 and summary["signal"]["carrying"] == 0


def test_a2_token_efficiency(replay):
    shaped = [0.9, -0.8, 0.7, 1, -0.5, -1, 0.6, 0.95]
    lines, _ = replay(a2(shaped), "{name: gfpo, k: 6, metric: token_efficiency, eps: 1.0e-6}")
    golden = [0.5662114955, 0, 0.1779521843, 0.7603411512, -2.1516036831, 0, -0.0161774713, 0.6632763234]
    assert [line["advantage"][0] for line in lines] == [exactly(value) for value in golden]
    assert [line["kept"] for line in lines] == [value != 0 for value in golden]


def test_a2_sample_std(replay):
    lines, _ = replay(a2(), "{name: grpo, std: sample, eps: 1.0e-6}")
    std = math.sqrt(8 * 0.625 * 0.375 / 7)  # 5 of 8 are correct
    golden = [(reward - 0.625) / (std + 1e-6) for reward in REWARD]
    assert [line["advantage"][0] for line in lines] == [exactly(value) for value in golden]


@pytest.mark.parametrize(
    "aggregation, golden, count, unit",
    [
        ("token-mean", -0.02802130240, 5, "token"),
        ("seq-mean-token-mean", 0.19092071181, 2, "sequence"),
        ("seq-mean-token-sum", -0.07005325601, 2, "sequence"),
        ("{tokens_per_row: 4}", -0.01751331400, 2, "sequence"),
        ("{constant: 4}", -0.03502662800, 4, "constant"),
    ],
)
@pytest.mark.parametrize("old", ["sampler", "trainer"])
def test_a1_aggregations(replay, aggregation, golden, count, unit, old):
    rows = a1() if old == "sampler" else a1(old_logprob=OLD, sampler_logprob=REF)
    lines, summary = replay(rows, f"{{name: grpo, aggregation: {aggregation}}}", old)
    assert (summary["loss"], summary["count"], summary["unit"]) == (exactly(golden), count, unit)
    assert [line["advantage"] for line in lines] == [[1.0] * 3, [-1.0] * 2]


def test_a1_weights_times_losses_over_the_count_are_the_loss(replay):
    lines, summary = replay(a1(), "{name: grpo, aggregation: seq-mean-token-mean, clip_high: 0.28}")
    total = 0.0
    for line, new, old in zip(lines, NEW, OLD, strict=True):
        assert line["weight"] == [exactly(1 / len(new))] * len(new)
        for a, w, n, o in zip(line["advantage"], line["weight"], new, old, strict=True):
            ratio = math.exp(n - o)
            total -= w * min(ratio * a, min(max(ratio, 0.8), 1.28) * a)
    assert summary["loss"] == exactly(total / summary["count"]) == exactly(0.17758737848)


def test_the_signal_counts_the_tokens_that_clipping_takes(replay):
    """Of A1, the ratio 1.35 at advantage 1: its token sends no gradient."""
    _, summary = replay(a1(), "{name: grpo}")
    ratios = [[math.exp(n - o) for n, o in zip(*rows, strict=True)] for rows in zip(NEW, OLD, strict=True)]
    clipped = sum(r > 1.2 for r in ratios[0]) + sum(r < 0.8 for r in ratios[1])
    taken = {"group_advantage": 0, "clipped_surrogate": clipped}
    assert clipped == 1
    assert summary["signal"] == {"generated": 5, "carrying": 5 - clipped, "taken": taken}


def test_the_kl_term(replay):
    plain = replay(a1(), "{name: grpo}")[1]["loss"]
    _, summary = replay(a1(ref_logprob=REF), "{name: grpo, add: [{kl_policy_ref: {coef: 0.5}}]}")
    assert summary["loss"] == exactly(plain + 0.5 * 0.01843154635)
    assert summary["terms"] == {
        "clipped_surrogate": {"loss": exactly(plain), "count": 5, "unit": "token"},
        "kl_policy_ref": {"loss": exactly(0.5 * 0.01843154635), "count": 5, "unit": "token"},
    }


def test_the_kl_term_to_the_old_policy_needs_no_reference(replay):
    _, expected = replay(a1(ref_logprob=OLD), "{name: grpo, add: [{kl_policy_ref: {coef: 0.5}}]}")
    _, summary = replay(a1(), "{name: grpo, add: [{kl_policy_ref: {coef: 0.5, to: old_policy}}]}")
    assert summary == expected and summary["terms"]["kl_policy_ref"]["loss"] > 0.01


def test_entropy_bonus(replay):
    plain = replay(a1(), "{name: grpo}")[1]["loss"]
    rows = a1(entropy=[[1, 2, 3], [4, 5]])
    _, summary = replay(rows, "{name: grpo, add: [{entropy_bonus: {coef: 0.1, aggregation: seq-mean-token-mean}}]}")
    assert summary["loss"] == exactly(plain - 0.1 * (2 + 4.5) / 2)
    assert summary["terms"]["entropy_bonus"]["unit"] == "sequence"


def test_importance_weights(replay):
    rows = a1(old_logprob=OLD, sampler_logprob=[[-1.5, -0.5, -2], [-0.7, -1.4]])
    objective = "{name: grpo, add: [{importance_weight: {high: 1.5}}]}"
    lines, _ = replay(rows, objective, "trainer")
    assert [line["weight"] for line in lines] == [[1.5, 1.0, 1.0], [1.0, exactly(math.exp(0.2))]]


def test_the_trainers_old_logprob_defaults_to_that_of_now(replay):
    """Recomputed before the first update they are the same; the ratio is 1."""
    _, summary = replay(a1(), "{name: grpo, aggregation: seq-mean-token-sum}", "trainer")
    assert summary["loss"] == exactly(-(3 - 2) / 2)


# ---- the order of rows, groups, and rows that take no part


def test_output_is_in_the_order_of_the_input(replay):
    """Two A2 groups, shuffled together, one with the rewards turned round."""
    turned = [{**row, "group": 1, "reward": 1 - row["reward"]} for row in a2()]
    rows = [row for pair in zip(a2(), reversed(turned), strict=True) for row in pair]
    lines, summary = replay(rows, "{name: gfpo, k: 4, eps: 1.0e-6}")
    apart, _ = replay(a2(), "{name: gfpo, k: 4, eps: 1.0e-6}")
    assert [line["group"] for line in lines] == ["p0", 1] * 8
    assert [line["advantage"] for line in lines[::2]] == [line["advantage"] for line in apart]
    # in reverse, the tie of the two 80-token rows is inside the four kept, so the rows match one to one
    for line, other in zip(reversed(lines[1::2]), apart, strict=True):
        assert line["advantage"] == [exactly(-a) for a in other["advantage"]] and line["kept"] == other["kept"]
    assert summary["loss"] == exactly((-0.0366971743 + 0.0366971743) / 2)
    assert summary["signal"]["generated"] == 2 * 1090


def test_groups_that_differ_only_in_type_are_two(replay):
    rows = [{**row, "group": group} for group in (1, "1") for row in a1()]
    rows[2]["reward"] = -5  # the second group is turned round
    lines, _ = replay(rows, "{name: grpo}")
    assert [line["advantage"][0] for line in lines] == [1.0, -1.0, -1.0, 1.0]
    assert [line["group"] for line in lines] == [1, 1, "1", "1"]


def test_null_rewards_take_no_part(replay):
    null = {"group": "p0", "response_ids": [1, 2, 3], "reward": None}
    rows = a2()
    lines, summary = replay([*rows[:3], null, *rows[3:], null], "{name: gfpo, k: 4, eps: 1.0e-6}")
    apart, expected = replay(rows, "{name: gfpo, k: 4, eps: 1.0e-6}")
    nothing = {"group": "p0", "kept": False, "advantage": [0.0] * 3, "weight": [0.0] * 3}
    assert lines == [*apart[:3], nothing, *apart[3:], nothing]
    assert summary == expected


def test_nothing_but_null_rewards(replay):
    rows = [{"group": 0, "response_ids": [1], "reward": None}] * 2
    lines, summary = replay(rows, "{name: grpo}")
    assert [line["kept"] for line in lines] == [False, False]
    assert (summary["loss"], summary["signal"]["generated"], summary["signal"]["carrying"]) == (0.0, 0, 0)


def test_empty_responses(replay):
    empty = {"group": 0, "response_ids": [], "reward": 0.5, "sampler_logprob": [], "logprob": []}
    lines, summary = replay([*a1(), empty], "{name: grpo}")
    assert lines[2] == {"group": 0, "kept": True, "advantage": [], "weight": []}
    assert math.isfinite(summary["loss"]) and summary["count"] == 5
    lines, summary = replay([empty, {**empty, "reward": 1}], "{name: gfpo, k: 2, aggregation: seq-mean-token-mean}")
    assert summary["loss"] == 0 and summary["signal"]["generated"] == 0


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("denominator", ["full", "selected"])
def test_nothing_to_learn(replay, aggregation, denominator):
    rows = [{**row, "reward": 1.0} for row in a1()]
    lines, summary = replay(rows, f"{{name: grpo, aggregation: {aggregation}, denominator: {denominator}}}")
    assert summary["loss"] == 0 and not any(a for line in lines for a in line["advantage"])
    assert summary["signal"] == {
        "generated": 5,
        "carrying": 0,
        "taken": {"group_advantage": 5, "clipped_surrogate": 0},
    }


def test_several_objectives(replay):
    objectives = (
        "[{gfpo: {k: 4, eps: 1.0e-6}, weight: 0.5}, {grpo: {}, weight: 2, add: [{entropy_bonus: {coef: 0.1}}]}]"
    )
    rows = [{**row, "entropy": [2.0] * len(row["response_ids"])} for row in a2()]
    lines, summary = replay(rows, objectives)
    apart = replay(rows, "{gfpo: {k: 4, eps: 1.0e-6}}"), replay(rows, "{grpo: {}, add: [{entropy_bonus: {coef: 0.1}}]}")
    for i, line in enumerate(lines):
        assert line["group"] == "p0" and [entry["name"] for entry in line["objectives"]] == ["gfpo", "grpo"]
        for entry, (others, _) in zip(line["objectives"], apart, strict=True):
            assert {"group": "p0", **entry} == {**others[i], "name": entry["name"]}
    assert summary["loss"] == exactly(0.5 * apart[0][1]["loss"] + 2 * apart[1][1]["loss"])
    assert summary["objectives"][0]["loss"] == exactly(0.5 * -0.0366971743)
    assert summary["objectives"][1]["terms"]["entropy_bonus"]["loss"] == exactly(2 * -0.1 * 2)


OBJECTIVES = [
    "{name: grpo}",
    "{name: grpo, std: none, aggregation: seq-mean-token-mean, denominator: selected}",
    "{name: gfpo, k: 2}",
    "{name: gfpo, k: 3, metric: token_efficiency, denominator: selected}",
    "{name: gfpo, k: {very_hard: 4, hard: 3, medium: 2, easy: 2, warmup_prompts: 2}, add: [{keep_top: {k: 2}}]}",
    "{name: grpo, add: [{importance_weight: {mode: mask, high: 1.05, low: 0.95}}, {kl_policy_ref: {coef: 1}}]}",
]


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_generated_tokens_carry_or_were_taken(folder, objective, seed):
    batch, logprob = random_batch(seed)
    fields = {name: getattr(batch, name) for name in ("sampler_logprob", "old_logprob", "ref_logprob")}
    rows = []
    for i, length in enumerate(batch.length.tolist()):
        tokens = {name: value[i, :length].tolist() for name, value in {**fields, "logprob": logprob}.items()}
        reward = None if i == seed % 20 else float(batch.reward[i])
        rows.append({"group": int(batch.group[i]), "response_ids": [1] * length, "reward": reward, **tokens})
    (folder / "recipe.yaml").write_text(RECIPE.replace("OLD", "trainer") + f"objective: {objective}\n")
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    *lines, summary = credit(load_experiment(folder / "recipe.yaml"), folder / "rollouts.jsonl")
    signal = summary["signal"]
    assert signal["generated"] == sum(len(row["response_ids"]) for row in rows if row["reward"] is not None)
    assert signal["generated"] == signal["carrying"] + sum(signal["taken"].values())
    assert all(count >= 0 for count in signal["taken"].values())
    assert list(signal["taken"])[-1] == "clipped_surrogate"  # the loss takes what clipping stops
    weighted = sum(a != 0 and w != 0 for line in lines for a, w in zip(line["advantage"], line["weight"], strict=True))
    assert signal["carrying"] == weighted - signal["taken"]["clipped_surrogate"]


# ---- what may be missing, and what may not


def test_dropped_rows_need_no_logprob(replay):
    rows = a2()
    for i in (0, 2, 4, 6):
        del rows[i]["logprob"], rows[i]["sampler_logprob"]
    assert replay(rows, "{name: gfpo, k: 4, eps: 1.0e-6}")[1]["loss"] == exactly(-0.0366971743)


def test_rows_of_constant_groups_need_no_logprob(replay):
    solved = [{"group": "easy", "response_ids": [1, 2], "reward": 1.0}] * 2
    _, summary = replay([*a1(), *solved], "{name: grpo, aggregation: seq-mean-token-sum}")
    assert summary["loss"] == exactly(-0.07005325601 / 2)


def test_what_no_objective_reads_may_be_anything_that_is_valid(replay):
    rows = [{**row, "text": "\u2028 ", "remark": "x", "chosen": None, "truncated": True} for row in a1()]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert "\u2028" in text  # str.splitlines would end a line here
    assert replay(text, "{name: grpo}") == replay(a1(), "{name: grpo}")


def test_the_last_line_needs_no_end(replay):
    text = "\n".join(map(json.dumps, a1()))
    assert replay(text, "{name: grpo}") == replay(a1(), "{name: grpo}")


KL = "{name: grpo, add: [{kl_policy_ref: {coef: 1}}]}"
ENTROPY = "{name: grpo, add: [{entropy_bonus: {coef: 1}}]}"
WEIGHTS = "{name: grpo, add: [{importance_weight: {}}]}"


@pytest.mark.parametrize(
    "field, objective, old, message",
    [
        ("reward", "{name: grpo}", "sampler", "reward: missing, and group_advantage needs it"),
        ("reward", "{name: gfpo, k: 2, metric: token_efficiency}", "sampler", "reward: missing, and keep_top needs it"),
        ("sampler_logprob", "{name: grpo}", "sampler", "sampler_logprob: missing, and clipped_surrogate needs it"),
        ("logprob", "{name: grpo}", "sampler", "logprob: missing, and the loss needs it"),
        ("logprob", "{name: grpo}", "trainer", "old_logprob or logprob: missing, and clipped_surrogate needs it"),
        ("ref_logprob", KL, "sampler", "ref_logprob: missing, and kl_policy_ref needs it"),
        ("entropy", ENTROPY, "sampler", "entropy: missing, and the loss needs it"),
        ("sampler_logprob", WEIGHTS, "trainer", "sampler_logprob: missing, and importance_weight needs it"),
    ],
)
@pytest.mark.parametrize("line", [1, 2])
def test_a_missing_field_is_named_with_its_line(replay, folder, field, objective, old, message, line):
    rows = a1(ref_logprob=REF, entropy=REF)
    replay(rows, objective, old)
    del rows[line - 1][field]
    with pytest.raises(ReplayError) as caught:
        replay(rows, objective, old)
    assert str(caught.value) == f"{folder}/rollouts.jsonl:{line}: {message}"


def test_the_line_of_a_missing_field_counts_rows_that_take_no_part(replay, folder):
    rows = [{"group": 0, "response_ids": [1], "reward": None}, *a1()]
    del rows[2]["logprob"]
    with pytest.raises(ReplayError, match=f"^{folder}/rollouts.jsonl:3: logprob: missing"):
        replay(rows, "{name: grpo}")


def changed(field, value):
    rows = a1()
    rows[1][field] = value
    return "".join(json.dumps(row) + "\n" for row in rows)


FIRST = json.dumps(a1()[0]) + "\n"


@pytest.mark.parametrize(
    "text, place",
    [
        (changed("logprob", [-1.0]), ":2: logprob: has 1 values, but there are 2 response_ids"),
        (changed("sampler_logprob", [-1.0] * 3), ":2: sampler_logprob: has 3 values, but there are 2 response_ids"),
        (changed("entropy", []), ":2: entropy: has 0 values, but there are 2 response_ids"),
        (changed("logprob", [-1.0, None]), ":2: logprob: null at token 1, and the loss needs it there"),
        (changed("logprob", [-1.0, "x"]), ":2: logprob.1: "),
        (changed("logprob", "x"), ":2: logprob: "),
        (changed("logprob", [math.nan, -1]), ":2: logprob.0: Input should be a finite number"),
        (changed("reward", math.nan), ":2: reward: Input should be a finite number"),
        (changed("reward", math.inf), ":2: reward: Input should be a finite number"),
        (changed("reward", "good"), ":2: reward: "),
        (changed("response_ids", [1.5, 2]), ":2: response_ids.0: "),
        (changed("response_ids", None), ":2: response_ids: "),
        (changed("group", None), ":2: group"),
        (changed("correct", "perhaps"), ":2: correct: "),
        (FIRST + '{"group": 0}\n', ":2: response_ids: Field required"),
        (FIRST + '{"response_ids": [1]}\n', ":2: group: Field required"),
        (FIRST + '{"group": 0, \n', ":2: line: Invalid JSON"),
        (FIRST + "[1]\n", ":2: line: "),
        ("", ": no rollouts; write one JSON object a line (run.samples: none records none)"),
    ],
)
def test_a_wrong_line_is_named_with_its_field(replay, folder, text, place):
    with pytest.raises(ReplayError) as caught:
        replay(text, "{name: grpo}")
    assert str(caught.value).startswith(f"{folder}/rollouts.jsonl{place}")


def test_k_larger_than_a_group_of_the_file(replay, folder):
    small = [{**row, "group": "small"} for row in a2()[:3]]
    with pytest.raises(ReplayError) as caught:
        replay([*a2(), *small], "{name: gfpo, k: 4}")
    place = f"{folder}/rollouts.jsonl:9: group 'small': keep_top: "
    assert str(caught.value) == place + "k = 4 of a group of 3: k must be at most the group size"


# ---- the command


@pytest.fixture
def files(folder):
    (folder / "recipe.yaml").write_text(RECIPE.replace("OLD", "sampler") + "objective: {name: gfpo, k: 4}\n")
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in a2()))
    return [str(folder / "recipe.yaml"), str(folder / "rollouts.jsonl")]


def command(*words):
    return CliRunner().invoke(app, ["credit", *words])


def test_command_prints_one_json_line_a_response_and_the_loss(files):
    result = command(*files, "objective.eps=1e-6")
    assert result.exit_code == 0 and result.stderr == ""
    *lines, summary = map(json.loads, result.stdout.splitlines())
    assert len(lines) == 8 and all(list(line) == ["group", "kept", "advantage", "weight"] for line in lines)
    assert summary["loss"] == exactly(-0.0366971743)
    assert list(summary) == ["loss", "count", "unit", "signal"]


def test_command_takes_overrides(files):
    result = command(*files, "objective.eps=1e-6", "objective.denominator=selected")
    assert json.loads(result.stdout.splitlines()[-1])["loss"] == exactly(-0.12499975)


@pytest.mark.parametrize(
    "words, message",
    [
        (["objective.k=1"], "command line: objective.k: Input should be greater than or equal to 2"),
        (["optim.steps=1", "hub=x"], "command line: hub: hub repository 'x' must be written user/name"),
        (["sampling.group_size=16", "objective.k=9"], "rollouts.jsonl:1: group 'p0': keep_top: k = 9 of a group of 8"),
    ],
)
def test_command_reports_what_is_wrong_and_fails(files, words, message):
    result = command(*files, *words)
    assert result.exit_code == 1 and message in result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr


def test_command_wants_files_that_exist(files):
    result = command(files[0], files[1] + "x")
    said = " ".join(result.stderr.replace("│", " ").split())  # it is wrapped in a box
    assert result.exit_code == 2 and "does not exist" in said


def test_samples_of_a_run_are_replayed_as_they_are(replay):
    """At the first update of a step the policy is the one that sampled."""
    rows = a1()
    for row in rows:
        row["logprob"] = row["sampler_logprob"]
    whole = replay(rows, "{name: grpo}")
    fields = {"step": 1, "prompt": "p", "response": "r", "rewards": {"one": 1.0}, "kept": [True], "advantage": [[1.0]]}
    samples = [{name: value for name, value in row.items() if name != "logprob"} | fields for row in rows]
    assert replay(samples, "{name: grpo}") == whole


def test_the_first_line_that_lacks_a_value_is_named(replay, folder):
    solved = [{"group": "easy", "response_ids": [1, 2], "reward": 1.0}] * 2
    rows = a1()
    del rows[0]["sampler_logprob"]
    with pytest.raises(ReplayError) as caught:
        replay([*solved, *rows], "{name: grpo}")
    file = f"{folder}/rollouts.jsonl"
    assert str(caught.value) == f"{file}:1: sampler_logprob: missing, and clipped_surrogate needs it in {file}:3"
