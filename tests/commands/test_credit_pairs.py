"""`python -m align credit` on pairs and on token rewards: golden values through files, and mistakes by their line."""

import json
import math

import pytest
import torch
from support.batches import random_pairs, result_of
from typer.testing import CliRunner

from align import objectives
from align.__main__ import app

RECIPE = """\
model: {policy: none}
data: {prompts: none.jsonl}
rewards: {"rewards.length:length_penalty": 1.0}
run: {steps: 1, out: runs/none}
sampling: {group_size: 2, old_logprob: sampler}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("replay")


@pytest.fixture
def command(folder):
    """A function: the command's result on rollouts under an objective, read from files."""

    def run(rollouts, objective):
        (folder / "recipe.yaml").write_text(RECIPE + f"objective: {objective}\n")
        (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rollouts))
        return CliRunner().invoke(app, ["credit", str(folder / "recipe.yaml"), str(folder / "rollouts.jsonl")])

    return run


@pytest.fixture
def replay(command):
    """A function: (lines of output, summary)."""

    def run(rollouts, objective):
        result = command(rollouts, objective)
        assert result.exit_code == 0, result.stderr or result.exception
        *lines, summary = [json.loads(line, parse_constant=pytest.fail) for line in result.stdout.splitlines()]
        return lines, summary

    return run


@pytest.fixture
def refused(command):
    """A function: what the command says about rollouts that it cannot use."""

    def run(rollouts, objective):
        result = command(rollouts, objective)
        assert result.exit_code == 1 and result.stdout == ""
        assert isinstance(result.exception, SystemExit), result.exception  # in words, without a traceback
        return result.stderr.strip()

    return run


def exactly(value):
    return pytest.approx(value, abs=5e-10)


def pair(*fields, group="p"):
    """The chosen and the rejected response; each quantity has a list for each."""
    given = dict(fields)
    lengths = [len(values) for values in given["logprob"]]
    rows = [{"group": group, "response_ids": [5] * n, "chosen": c} for n, c in zip(lengths, (True, False), strict=True)]
    for name, (chosen, rejected) in given.items():
        rows[0][name], rows[1][name] = chosen, rejected
    return rows


# fixtures A and B of specs/preference.md, and its sums of BoNBoN
A = {
    "logprob": ([-0.9, -1.6, -0.4], [-1.3, -0.8]),
    "ref_logprob": ([-1.1, -1.5, -0.7], [-1.0, -1.2]),
    "guide_logprob": ([-0.6, -2.0, -0.3], [-1.8, -1.0]),
}
B = {  # log-ratios and divergences of the specification's logits
    "logprob": ([0.2726637062, -0.4065753740], [-0.5934246260, 0.3118999477]),
    "ref_logprob": ([0.0, 0.0], [0.0, 0.0]),
    "ref_kl": ([0.0672579599, 0.0886630376], [0.0934246260, 0.1119831675]),
    "reward_mask": ([0.5, 0.0], [1.2, 0.3]),
    "kl_mask": ([0.0, 0.7], [0.4, 0.0]),
}
BON = {"logprob": ([-10.0, -32.0], [-20.0, -30.0, -5.0]), "ref_logprob": ([-5.0, -40.0], [-50.0, 0.0, 0.0])}

DPO_S = ("margin", "accuracy")
DPO_B = 0.8 * (-0.1339116678 + 0.2815246783)
LOSSES = [
    ("{name: dpo, beta: 0.1}", A, 0.6782596763, 0.03, 0.03),
    ("{name: ipo, beta: 0.1}", A, 24.1736111111, 0.4 / 3 - 0.05, 0.03),
    ("{name: ipo, beta: 0.1, form: sum}", A, 22.09, 0.3, 0.03),
    ("{name: simpo, beta: 2, gamma_beta_ratio: 0.5}", A, 1.1942181493, 2 * (-2.9 / 3 + 1.05), None),
    ("{name: tgdpo, beta: 0.1, alpha: 0.5}", A, 0.6768078872, 0.03295, 0.03),
    ("{name: tgdpo, beta: 1, alpha: 2}", A, 0.2050917442, 1.48, 0.3),
    ("{name: tgdpo, beta: 0.1, alpha: 0.5, guide_beta: 0.01}", A, 0.6781143996, 0.030295, 0.03),
    ("{name: tdpo1, beta: 0.8}", B, 0.6546667974, None, DPO_B),
    ("{name: tdpo2, beta: 0.8}", B, 0.6452066050, None, DPO_B),
    ("{name: sparsepo, beta: 0.8, masks: independent}", B, 0.4291706640, 0.6236525567, DPO_B),
    ("{name: sparsepo, beta: 0.8, masks: independent, l1_reward: 0.001, l1_kl: 0.001}", B, 0.4322706640, None, DPO_B),
    ("{name: mapo, beta: 0.8}", B, 0.4291706640, 0.6236525567, DPO_B),
    ("{name: bonbon, n: 8}", BON, 102.7173875, 8, 8 / (2 * 18.15)),
    ("{name: bonbon, n: 8, variant: code, alpha: 0}", BON, math.log1p(math.exp(-8 / 36.3)), None, 8 / (2 * 18.15)),
    ("{name: sft, form: sum}", A, 2.9, None, None),
    ("{name: sft}", A, 2.9 / 3, None, None),
]
every_loss = pytest.mark.parametrize("case", LOSSES, ids=[case[0] for case in LOSSES])


@every_loss
def test_golden_losses_and_margins(replay, case):
    objective, fixture, loss, logit, margin = case
    lines, summary = replay(pair(*fixture.items()), objective)
    unit = "sequence" if "sft" in objective else "pair"
    assert (summary["loss"], summary["count"], summary["unit"]) == (exactly(loss), 1, unit)
    assert logit is None or summary["logit"] == exactly(logit)
    if margin is not None:
        assert summary["margin"] == exactly(margin) and summary["accuracy"] == 1
    assert [(line["group"], line["kept"]) for line in lines] == [("p", True)] * 2
    assert [len(line["advantage"]) for line in lines] == [len(values) for values in fixture["logprob"]]


def test_the_margin_of_the_wrong_response(replay):
    rows = [{**row, "chosen": not row["chosen"]} for row in pair(*A.items())]
    _, summary = replay(rows, "{name: dpo, beta: 0.1}")
    assert summary["margin"] == summary["logit"] == exactly(-0.03)
    assert summary["accuracy"] == summary["logit_accuracy"] == 0


@pytest.mark.parametrize(
    "beta, alpha, chosen, rejected",
    [
        (0.1, 0.5, [-0.0504057326, -0.0479469164, -0.0501598510], [0.0511433775, 0.0486845613]),
        (1, 2, [-0.3708548386, 0, -0.3337693547], [0.4821112902, 0.1112564516]),
    ],
)
def test_the_credit_of_a_token_is_its_gradient_downhill(replay, beta, alpha, chosen, rejected):
    """And that of its own pair: more pairs divide the loss and not the credit."""
    for copies in (1, 3):
        rows = [row for group in range(copies) for row in pair(*A.items(), group=group)]
        lines, summary = replay(rows, f"{{name: tgdpo, beta: {beta}, alpha: {alpha}}}")
        expected = [[exactly(-g) for g in side] for side in (chosen, rejected)]
        assert [line["advantage"] for line in lines] == expected * copies
        assert [line["weight"] for line in lines] == [[1.0] * 3, [1.0] * 2] * copies
        assert summary["count"] == copies


def test_the_l1_term_and_the_likelihood_are_terms_of_their_own(replay):
    _, summary = replay(pair(*B.items()), "{name: sparsepo, beta: 0.8, masks: independent, l1_reward: 1, l1_kl: 2}")
    assert summary["terms"]["pair_logistic_masked"]["loss"] == exactly(0.4291706640)
    assert summary["terms"]["mask_l1"] == {"loss": exactly(2.0 + 2 * 1.1), "count": 1, "unit": "pair"}
    _, summary = replay(pair(*BON.items()), "{name: bonbon, n: 8}")
    assert summary["terms"]["best_of_n"]["loss"] == exactly(0.995 * 103.0225)
    assert summary["terms"]["chosen_nll"]["loss"] == exactly(0.005 * 42)


def test_pairs_in_any_order_are_what_the_tensors_give(replay):
    batch, current = random_pairs(4, pairs=4)
    rows = []
    order = [5, 0, 3, 2, 7, 4, 1, 6]
    for i in order:
        n = int(batch.length[i])
        tokens = {name: value[i, :n].tolist() for name, value in current.items()}
        tokens |= {name: getattr(batch, name)[i, :n].tolist() for name in ("ref_logprob", "guide_logprob")}
        group, chosen = int(batch.group[i]), bool(batch.chosen[i])
        rows.append({"group": group, "response_ids": [1] * n, "chosen": chosen, **tokens})
    for name in ("dpo", "ipo", "simpo", "tdpo1", "tdpo2", "tgdpo", "sparsepo", "sft"):
        objective = getattr(objectives, name)()
        reads = {"logprob"} | {field for loss in objective.losses for field in loss.reads_current}
        loss, gradients, metrics = result_of(objective, batch, **{field: current[field] for field in sorted(reads)})
        lines, summary = replay(rows, f"{{name: {name}}}")
        assert summary["loss"] == pytest.approx(float(loss), rel=1e-12)
        printed = {key: value for key, value in summary.items() if key in ("logit", "logit_accuracy", *DPO_S)}
        assert printed == pytest.approx({key: metrics[key] for key in printed})
        assert set(DPO_S) <= set(printed) or name in ("simpo", "sft")  # which read no reference
        for line, i in zip(lines, order, strict=True):
            expected = -4 * gradients["logprob"][i, : batch.length[i]]
            assert line["advantage"] == pytest.approx(expected.tolist(), abs=1e-12)


def test_pairs_of_the_best_and_the_worst_need_no_label(replay):
    rows = pair(*A.items())
    middle = {"group": "p", "response_ids": [5], "reward": 0.5}  # never compared, so nothing more is needed
    rows = [{**rows[1], "reward": 0.0}, middle, {**rows[0], "reward": 1.0}]
    for row in rows:
        row.pop("chosen", None)
    lines, summary = replay(rows, "{name: dpo, beta: 0.1, add: [{best_and_worst: {}}]}")
    assert (summary["loss"], summary["margin"]) == (exactly(0.6782596763), exactly(0.03))
    assert [line["kept"] for line in lines] == [True, False, True]
    assert lines[1]["advantage"] == lines[1]["weight"] == [0.0]
    assert summary["signal"] == {"generated": 6, "carrying": 5, "taken": {"best_and_worst": 1}}


def test_rollouts_without_contrast_give_valid_json(replay):
    """No pair has no margin: not one that is no number."""
    rows = [{**row, "reward": 1.0} for row in pair(*A.items())]
    _, summary = replay(rows, "{name: dpo, add: [{best_and_worst: {}}]}")
    assert summary["loss"] == 0 and summary["signal"]["carrying"] == 0


# ---- token rewards

RTO = {
    "group": 0,
    "response_ids": [5, 6, 7],
    "reward": 1.2,
    "sampler_logprob": [-0.9, -1.6, -0.4],
    "ref_logprob": [-1.1, -1.5, -0.7],
    "guide_logprob": [-0.6, -4.0, -0.3],
    "value": [0.5, 0.4, 0.8],
    "new_value": [0.9, 0.1, 0.9],
    "logprob": [-0.7, -1.9, -0.35],
    "token_text": ["Yes", " it is.", "!"],
}


def test_golden_rto(replay):
    lines, summary = replay([RTO], "{name: rto}")
    assert lines[0]["advantage"] == [exactly(a) for a in (0.2470037759, 1.0824176164, -1.3294213923)]
    assert summary["terms"]["clipped_surrogate"]["loss"] == exactly(0.0997676870)
    assert summary["terms"]["value_loss"]["loss"] == exactly(0.2307202451)
    assert summary["loss"] == exactly(0.0997676870 + 0.2307202451)
    assert "margin" not in summary


@pytest.mark.parametrize(
    "objective, golden",
    [
        ("{name: rto, whitening: none}", [0.6327925, 0.74715, 0.417]),
        ("{name: rto, whitening: none, guide_clip: .inf}", [0.5615425, 0.67215, 0.417]),
        ("{name: rto, whitening: none, guide_scale: 0}", [0.6372425, 0.77815, 0.397]),
        ("{name: ppo, whitening: none}", [0.6372425, 0.77815, 0.397]),
    ],
)
def test_golden_advantages(replay, objective, golden):
    lines, _ = replay([RTO], objective)
    assert lines[0]["advantage"] == [exactly(a) for a in golden]


def test_sentences_are_paid_at_their_ends(replay):
    """With gamma 0 and no value the credit is the token's own reward."""
    rows = [{**RTO, "value": [0.0] * 3, "reward": 0.0}]
    lines, _ = replay(rows, "{name: rto, variant: semi, gamma: 0, whitening: none, kl_coef: 0, guide_clip: .inf}")
    assert lines[0]["advantage"] == [0, exactly(-0.1), exactly(0.02)]


def test_a_new_value_defaults_to_the_old_one(replay):
    row = {**RTO, "value": [0.5, 0.4, 0.8]}
    del row["new_value"]
    _, summary = replay([row], "{name: rto}")
    errors = [0.6327925, 0.74715, 0.417]  # returns less values: the advantages
    assert summary["terms"]["value_loss"]["loss"] == exactly(sum(e**2 for e in errors) / 6)


# ---- what is missing or is no pair


GUIDED, MASKED = "{name: tgdpo}", "{name: sparsepo}"
MISSING = [
    ("chosen", "{name: dpo}", "chosen: missing, and pair_logistic needs it"),
    ("chosen", "{name: sft}", "chosen: missing, and chosen_nll needs it"),
    ("logprob", "{name: dpo}", "logprob: missing, and the loss needs it"),
    ("logprob", "{name: simpo}", "logprob: missing, and the loss needs it"),
    ("ref_logprob", "{name: dpo}", "ref_logprob: missing, and pair_logistic needs it"),
    ("ref_logprob", "{name: ipo}", "ref_logprob: missing, and pair_squared needs it"),
    ("ref_logprob", "{name: bonbon, n: 8}", "ref_logprob: missing, and best_of_n needs it"),
    ("guide_logprob", GUIDED, "guide_logprob: missing, and pair_logistic_guided needs it"),
    ("ref_kl", "{name: tdpo1}", "ref_kl: missing, and the loss needs it"),
    ("ref_kl", MASKED, "ref_kl: missing, and the loss needs it"),
    ("reward_mask", MASKED, "reward_mask: missing, and the loss needs it"),
    ("kl_mask", MASKED, "kl_mask: missing, and the loss needs it"),
    ("reward_mask", "{name: mapo}", "reward_mask: missing, and pair_logistic_masked needs it"),
]


@pytest.mark.parametrize("field, objective, message", MISSING, ids=[f"{case[0]}-{case[1]}" for case in MISSING])
@pytest.mark.parametrize("line", [1, 2])
def test_a_missing_field_of_a_pair_is_named_with_its_line(refused, folder, field, objective, message, line):
    rows = pair(*B.items(), ("guide_logprob", B["ref_logprob"]))
    del rows[line - 1][field]
    assert refused(rows, objective) == f"{folder}/rollouts.jsonl:{line}: {message}"


@pytest.mark.parametrize(
    "field, message",
    [
        ("reward", "reward: missing, and token_reward needs it"),
        ("sampler_logprob", "sampler_logprob: missing, and token_reward needs it"),
        ("ref_logprob", "ref_logprob: missing, and token_reward needs it"),
        ("guide_logprob", "guide_logprob: missing, and guide_reward needs it"),
        ("value", "value: missing, and gae needs it"),
        ("logprob", "logprob: missing, and the loss needs it"),
        ("token_text", "token_text: missing, and guide_reward needs it"),
    ],
)
def test_a_missing_field_of_token_rewards_is_named_with_its_line(refused, folder, field, message):
    second = {name: value for name, value in RTO.items() if name != field}
    assert refused([RTO, second], "{name: rto, variant: semi}") == f"{folder}/rollouts.jsonl:2: {message}"


def test_what_an_objective_does_not_read_may_be_missing(replay):
    rows = pair(*A.items())
    del rows[1]["guide_logprob"], rows[0]["ref_logprob"]
    assert replay(rows, "{name: simpo}")[1]["loss"] == exactly(1.1942181493)
    del rows[1]["logprob"]  # the rejected response
    assert replay(rows, "{name: sft, form: sum}")[1]["loss"] == exactly(2.9)
    bare = {name: value for name, value in RTO.items() if name not in ("guide_logprob", "token_text")}
    assert replay([bare], "{name: ppo, whitening: none}")[0][0]["advantage"][2] == exactly(0.397)


@pytest.mark.parametrize(
    "sides",
    [[True], [False], [True, True], [False, False], [True, False, False], [True, False, True, False]],
)
def test_a_group_that_is_no_pair_is_refused_in_words(refused, folder, sides):
    first = pair(*A.items())
    others = [{**first[0], "group": "odd", "chosen": chosen} for chosen in sides]
    said = refused([*first, *others], "{name: dpo}")
    assert "exactly one chosen and one rejected" in said and said.startswith(f"{folder}/rollouts.jsonl")


def test_the_command_prints_credit_and_margin_and_nothing_else(command):
    result = command(pair(*A.items()), "{name: dpo, beta: 0.1}")
    assert result.exit_code == 0 and result.stderr == ""
    *lines, summary = map(json.loads, result.stdout.splitlines())
    assert len(lines) == 2 and all(list(line) == ["group", "kept", "advantage", "weight"] for line in lines)
    measures = ["logit", "logit_accuracy", "margin", "accuracy", "reward/chosen", "reward/rejected"]
    assert list(summary) == ["loss", "count", "unit", "signal", *measures]


@pytest.mark.filterwarnings("error")
def test_nothing_is_warned_about(replay):
    torch.set_warn_always(True)  # not only the first time in this process
    try:
        assert replay(pair(*A.items()), "{name: dpo}")[1]["accuracy"] == 1
    finally:
        torch.set_warn_always(False)
