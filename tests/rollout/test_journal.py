"""Persisted rollouts: they come back bit for bit, and only where they belong."""

import json
import math
import random
from pathlib import Path

import pytest
from support.episodes import environments, played, prompt

from align.data.prompts import Prompt, Response
from align.rollout.journal import Call, Journal
from align.rollout.rollouts import Rollout

PROMPTS = [Prompt([1, i], f"text {i}", [{"role": "user", "content": str(i)}], {"answer": object()}) for i in range(3)]
CALL = Call(step=4, source=0, round=1, rank=0)
LINEAGE = [(0, "one recipe")]


def sampled():
    """Two responses a prompt, with logarithms of all sizes."""
    draw = random.Random(0)
    logprobs = [-math.exp(draw.uniform(-40, 5)) for _ in range(50)] + [0.0, -5e-324, -math.inf]
    return [(i, j, p, Response(list(range(53)), logprobs, bool(j))) for i, p in enumerate(PROMPTS) for j in range(2)]


def scored(responses):
    return [Rollout(i, j, p, r, "\u2028ü", {"a": 0.1, "b": None}, 1 / 3, False) for i, j, p, r in responses]


def never(*_):
    raise AssertionError("made again")


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path, LINEAGE)
    responses = journal.sampled(CALL, PROMPTS, sampled)
    journal.scored(CALL, responses, lambda: scored(responses))
    return journal


def test_rollouts_come_back_bit_for_bit(journal):
    again = Journal(journal.folder, LINEAGE)
    assert again.sampled(CALL, PROMPTS, never) == sampled()
    rollouts = again.scored(CALL, sampled(), never)
    assert rollouts == scored(sampled())
    assert all(rollout.prompt is PROMPTS[rollout.group] for rollout in rollouts)


def test_episodes_come_back_with_the_prompt_that_their_environment_opened(tmp_path):
    rows = [prompt("a "), prompt("b ")]
    with environments(Guess={"max_turns": 2}) as found:
        episodes, _ = played(rows, lambda *_: "7", found, n=2)
        broken, _ = played(rows, lambda call, _: ["7", "raise"][call], found, n=2)
    for number, made in enumerate((episodes, broken)):
        call = Call(number, 0, 0, 0)
        assert Journal(tmp_path, LINEAGE).sampled(call, rows, lambda made=made: made) == made
        again = Journal(tmp_path, LINEAGE).sampled(call, rows, never)
        assert again == made and again[0][2].text != rows[0].text


def flip(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [flip, empty])
def test_what_is_damaged_is_made_again(harm, journal):
    harm(journal.folder / "step_5/0-1-0.sampled")
    harm(journal.folder / "step_5/0-1-0.scored")
    made = []
    assert journal.sampled(CALL, PROMPTS, lambda: made.append("sampled") or sampled()) == sampled()
    assert journal.scored(CALL, sampled(), lambda: made.append("scored") or scored(sampled())) == scored(sampled())
    assert made == ["sampled", "scored"]


@pytest.mark.parametrize(
    "lineage, call, prompts",
    [
        ([(0, "another recipe")], CALL, PROMPTS),
        ([*LINEAGE, (2, "another recipe")], CALL, PROMPTS),
        (LINEAGE, Call(5, 0, 1, 0), PROMPTS),
        (LINEAGE, Call(4, 1, 1, 0), PROMPTS),
        (LINEAGE, Call(4, 0, 0, 0), PROMPTS),
        (LINEAGE, Call(4, 0, 1, 1), PROMPTS),
        (LINEAGE, CALL, PROMPTS[::-1]),  # the data has changed
    ],
)
def test_rollouts_of_anything_else_are_not_used(lineage, call, prompts, journal):
    other, made = Journal(journal.folder, lineage), []
    other.sampled(call, prompts, lambda: made.append(1) or sampled())
    responses = [(i, j, prompts[i], r) for i, j, _, r in sampled()]
    other.scored(call, responses, lambda: made.append(2) or scored(responses))
    assert made == [1, 2]


@pytest.mark.parametrize("kind", ["sampled", "scored"])
@pytest.mark.parametrize("call", [Call(5, 0, 1, 0), Call(4, 0, 1, 1), Call(4, 0, 0, 0)])
def test_the_entry_of_another_call_is_not_used(journal, call, kind):
    """Its file was put in the place of another step's, rank's or round's, which has the same prompts."""
    path = journal.folder / f"{call.name}.{kind}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((journal.folder / f"{CALL.name}.{kind}").read_bytes())
    made = []
    if kind == "sampled":
        journal.sampled(call, PROMPTS, lambda: made.append(1) or sampled())
    else:
        journal.scored(call, sampled(), lambda: made.append(1) or scored(sampled()))
    assert made


def test_an_older_entry_that_does_not_say_its_call_still_loads(journal):
    for path in journal.folder.glob("step_5/*"):
        head, _, body = path.read_bytes().partition(b"\n")
        plain = {name: value for name, value in json.loads(head).items() if name != "call"}
        path.write_bytes(json.dumps(plain).encode() + b"\n" + body)
    assert journal.sampled(CALL, PROMPTS, never) == sampled()
    assert journal.scored(CALL, sampled(), never) == scored(sampled())


def test_count_and_forget(journal):
    assert [journal.kept(step) for step in (0, 4, 5)] == [6, 6, 0]
    assert Journal(journal.folder, [(0, "another recipe")]).kept(0) == 0
    journal.forget(4)
    assert journal.kept(0) == 6
    journal.forget(5)
    assert journal.kept(0) == 0 and not list(journal.folder.iterdir())


def other():
    """Other responses to the same prompts."""
    return [(i, j, p, Response(r.ids[::-1], r.logprobs, r.truncated)) for i, j, p, r in sampled()]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("harm", [flip, empty, Path.unlink])
def test_scores_of_other_responses_are_not_used(harm, old, journal):
    """What was sampled is damaged, and sampled again otherwise, as on a GPU; also beside scores of earlier versions."""
    if old:
        path = journal.folder / "step_5/0-1-0.scored"
        head, _, body = path.read_bytes().partition(b"\n")
        plain = {name: value for name, value in json.loads(head).items() if name != "responses"}
        path.write_bytes(json.dumps(plain).encode() + b"\n" + body)
        assert journal.scored(CALL, sampled(), never) == scored(sampled())  # they still load
    harm(journal.folder / "step_5/0-1-0.sampled")
    assert journal.sampled(CALL, PROMPTS, other) == other()
    made = []
    assert journal.scored(CALL, other(), lambda: made.append(1) or scored(other())) == scored(other()) and made


def test_scores_belong_to_exactly_their_responses(journal):
    made = []
    journal.scored(CALL, other(), lambda: made.append(1) or scored(other()))
    assert made


def test_any_flipped_bit_is_found(journal):
    """What comes back is what was written, or made again."""
    draw = random.Random(1)
    for kind in ("scored", "sampled"):
        path = journal.folder / f"step_5/0-1-0.{kind}"
        whole = path.read_bytes()
        for _ in range(300):
            content = bytearray(whole)
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
            if kind == "scored":
                assert journal.scored(CALL, sampled(), lambda: scored(sampled())) == scored(sampled())
            else:
                assert journal.sampled(CALL, PROMPTS, sampled) == sampled()


def test_stray_files_are_no_entries_and_stay(journal):
    (journal.folder / "step_x").mkdir()
    (journal.folder / "step_3").write_text("a file")
    (journal.folder / "step_5/0-9-9.sampled").mkdir()
    assert journal.kept(0) == 6
    journal.forget(5)
    assert sorted(path.name for path in journal.folder.iterdir()) == ["step_3", "step_x"]


def test_what_another_rank_of_the_engine_must_sample_again_is_sampled_together(journal):
    made = []
    alone = Journal(journal.folder, LINEAGE, agreed=lambda here: False)  # another rank has no entry
    assert alone.sampled(CALL, PROMPTS, lambda: made.append(1) or sampled()) == sampled() and made
    assert Journal(journal.folder, LINEAGE, agreed=lambda here: here).sampled(CALL, PROMPTS, never) == sampled()


def folders(journal):
    return sorted(path.name for path in journal.folder.iterdir())


def test_what_was_sampled_ahead_of_a_kept_checkpoint_stays(tmp_path):
    journal = Journal(tmp_path, LINEAGE)
    for step in range(5):
        journal.sampled(Call(step, 0, 0, 0), PROMPTS, sampled)
    journal.forget(4, ahead_of=(2, 4))  # checkpoints of 2 and 4 steps
    assert folders(journal) == ["step_3", "step_5"]
    journal.forget(4)
    assert folders(journal) == ["step_5"]


def test_another_run_goes_on_with_what_was_sampled_ahead_where_its_lineage_is_the_same(journal, tmp_path):
    other = Journal(tmp_path / "other", LINEAGE)
    other.adopt(journal.folder, 4)  # nothing was sampled for that step
    assert not other.folder.exists() or folders(other) == []
    other.adopt(journal.folder, 5)
    assert other.sampled(CALL, PROMPTS, never) == sampled()
    stranger, made = Journal(tmp_path / "stranger", [(0, "another recipe")]), []
    stranger.adopt(journal.folder, 5)
    stranger.sampled(CALL, PROMPTS, lambda: made.append(1) or sampled())
    assert made
