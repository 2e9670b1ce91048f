"""What the check says of healthy recipes: arithmetic, models and passes, notes."""

import math

import pytest
from support.broken import corpus
from support.broken.corpus import facts


def test_the_arithmetic_of_a_step(bench):
    found = facts(bench, processes=2, stage=2)
    assert found["step"]["prompts"] == 2 and found["step"]["rows"] == 8 and found["step"]["rows of a process"] == 4
    assert found["data"]["data"]["train"] == 6 and found["data"]["data"]["held_out"] == 2
    assert found["step"]["epochs"] == round(2 * 2 / 6, 2)
    assert found["rewards"]["fine"]["answer"] == 1.0 and found["rewards"]["fine"]["placeholder"] == 0.0
    assert set(found["models"]) == {"policy", "sampler"} and found["passes"] == {"gfpo": {}}


@pytest.mark.parametrize(
    "layout, tokens", [("padded", lambda p, r: 4 * (p + r)), ("shared_prefix", lambda p, r: p + 4 * (r - 1))]
)
def test_micro_batches_are_those_of_the_layout(bench, layout, tokens):
    bench.put("optim.layout", layout)
    bench.put("optim.micro_batch_tokens", 40)
    found = facts(bench)
    prompt, response = found["data"]["data"]["prompt_tokens"]["max"], bench.recipe["sampling"]["max_response_tokens"]
    assert found["step"]["micro-batches of a process, about"] == math.ceil(2 * tokens(prompt, response) / 40)


def test_models_and_passes_of_a_guided_objective(bench):
    bench.guided()
    found = facts(bench)
    assert set(found["models"]) == {"policy", "reference", "guide"}  # nothing is sampled
    assert found["passes"]["tgdpo"] == {"guide": ["guide_logprob"], "reference": ["ref_logprob"]}


def test_cut_responses_are_counted(bench):
    bench.learns_from_pairs()
    bench.put("data.max_response_tokens", 5)
    found = bench.checked()
    assert found["facts"]["data"]["data"]["cut"] == 8  # "no idea" of each pair, and no number
    assert any("8 of 16 responses are cut" in note for note in found["notes"])


def test_prompts_left_out_for_their_length_are_counted(bench):
    rows = corpus.prompts(6)
    rows[2]["prompt"] = "x" * 200
    bench.rows(rows)
    bench.put("data.long_prompts", "drop")
    found = bench.checked()
    assert found["ok"] and found["facts"]["data"]["data"]["over max_prompt_tokens"] == 1
    assert "data: 1 of 6 prompts are longer than max_prompt_tokens and left out" in found["notes"]


def test_notes_of_what_may_not_be_meant(bench):
    bench.put("data.prompts_per_step", 7)
    bench.put("optim.warmup_steps", 5)
    bench.put("data.holdout", 0)
    bench.put("run.eval_every", 1)
    bench.rows(corpus.prompts(6))
    notes = "\n".join(bench.checked()["notes"])
    assert "7 prompts of 6" in notes and "optim.warmup_steps: 5 never" in notes and "run.eval_every: nothing" in notes


def test_notes_of_what_has_no_effect(bench):
    bench.recipe["data"] |= {
        "holdout": 0,
        "holdout_by": "answer",
        "eval_args": {"split": "train"},
        "system": "Be kind.",
    }
    bench.recipe["optim"] |= {"schedule": "linear", "schedule_steps": 1}
    bench.reward("corpus_rewards:fine", weight=0.0)
    rows = [{"prompt": f"{i}+1?", "answer": "1", "truncated": i} for i in range(8)]
    bench.rows(rows)
    result = bench.checked()
    assert result["ok"], result["problems"]
    notes = "\n".join(result["notes"])
    for part in (
        *("data.holdout_by: has no effect", "data.eval_args: has no effect", "data.system: has no effect"),
        *("lr is 0 from step 1 of 2 on", "every weight is 0", "rewards get truncated of the run"),
    ):
        assert part in notes, (part, notes)


def test_no_note_of_what_has_an_effect(bench):
    bench.recipe["data"] |= {"holdout_by": "answer", "system": "Be kind."}
    bench.recipe["optim"] |= {"schedule": "linear", "schedule_steps": 2}
    assert bench.checked()["notes"] == []
