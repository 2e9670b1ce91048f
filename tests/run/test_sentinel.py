"""What the sentinel does in a run: warnings said once, rolling back, stopping, the same after a resume."""

import json
from types import SimpleNamespace

import pytest
import torch
from support.batches import batch_of
from support.steps import FINE, NO_TOKEN, run

from align.checkpoint import checkpoint
from align.config.recipe import Correct
from align.config.sentinel import Sentinel
from align.data.prompts import Prompt, Response
from align.objectives.sparsepo import pair_logistic_masked
from align.rollout.rollouts import Rollout
from align.run.sentinel import Watch, dump, last_good, unfinite, warnings_of
from align.system import files
from align.system.node import Node


def watch(tmp_path, earlier=(), **sections) -> Watch:
    """A watch over a run of which metrics.jsonl says this."""
    recipe = SimpleNamespace(sentinel=Sentinel.model_validate(sections))
    experiment = SimpleNamespace(recipe=recipe, correct=Correct(reward="right"), objectives=())
    log = SimpleNamespace(out=tmp_path, steps=lambda: list(earlier))
    return Watch(SimpleNamespace(experiment=experiment, node=Node()), log)


def judged(own: Watch, steps) -> list[dict]:
    """The steps with their flags, as metrics.jsonl has them; a rollback forgets what was, as the real one does."""
    out = []
    for step in steps:
        verdict = own.judge(step["step"], {key: value for key, value in step.items() if key != "step"})
        out.append({**step, **verdict.flags})
        if verdict.action == "rollback":
            own.rollbacks, own.steps = own.rollbacks + 1, []
    return out


def flagged(rows, flag) -> list[int]:
    return [row["step"] for row in rows if f"sentinel/{flag}" in row]


def test_a_warning_is_said_once_and_again_after_a_while(tmp_path):
    steps = run((12, {}), (50, {"response/truncated": 1.0}))
    assert flagged(judged(watch(tmp_path), steps), "all_truncated") == [17, 38, 59]
    often = judged(watch(tmp_path, remind=10), steps)
    assert flagged(often, "all_truncated") == [17, 28, 39, 50, 61]


def test_a_rule_that_comes_and_goes_is_not_said_each_time(tmp_path):
    steps = run(*[(3, {"ratio_max": 900.0}), (2, {})] * 6)
    assert flagged(judged(watch(tmp_path), steps), "ratio_blow_up") == [3, 28]


def make_checkpoints(tmp_path, *steps):
    for step in steps:
        folder = tmp_path / f"checkpoints/step_{step}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(checkpoint.State(step, [], 1, []).to_json())
        sums = [f"{digest}  {name}\n" for name, digest in files.digests(folder).items()]
        (folder / checkpoint.SUMS).write_text("".join(sums))


ROLLBACK = {"ratio_blow_up": {"for_steps": 3, "action": "rollback"}}


def test_the_last_good_checkpoint_is_from_before_it_began(tmp_path):
    make_checkpoints(tmp_path, 2, 4, 6)
    (tmp_path / "checkpoints/step_5").mkdir()  # not whole
    assert last_good(tmp_path / "checkpoints", 5) == tmp_path / "checkpoints/step_4"
    assert last_good(tmp_path / "checkpoints", 1) is None
    own = watch(tmp_path, **ROLLBACK)
    *_, last = (own.judge(step["step"], step) for step in run((5, {}), (3, {"ratio_max": 900.0})))
    assert (last.action, last.good) == ("rollback", tmp_path / "checkpoints/step_4")


def test_without_a_checkpoint_from_before_and_after_so_many_rollbacks_a_run_stops(tmp_path):
    steps = run((4, {}), (20, {"ratio_max": 900.0}))
    assert flagged(judged(watch(tmp_path, **ROLLBACK), steps), "stop")[:1] == [7]
    make_checkpoints(tmp_path, 2)
    rows = judged(watch(tmp_path, **ROLLBACK, rollbacks=2), steps)
    assert flagged(rows, "rollback") == [7, 10] and flagged(rows, "stop")[:1] == [13]


@pytest.mark.parametrize("sections", [ROLLBACK, {"ratio_blow_up": {"for_steps": 3, "action": "stop"}}, {}])
def test_a_resumed_run_judges_as_the_whole_one(tmp_path, sections):
    """Up to the step after which the run stops, wherever it was cut."""
    make_checkpoints(tmp_path, 2)
    drift = {"response/length": 90.0}
    steps = run((5, {}), (2, {"ratio_max": 900.0}), (9, {"ratio_max": 900.0, **drift}), (9, drift))
    whole = judged(watch(tmp_path, **sections), steps)
    acted = [i for i, row in enumerate(whole) if "sentinel/stop" in row]
    assert len(whole[0]) < len(whole[7]) and any(len(row) > len(FINE) + 1 for row in whole)
    for cut in range(1, (acted or [len(whole)])[0]):
        earlier = [json.loads(json.dumps(row)) for row in whole[:cut]]
        assert judged(watch(tmp_path, earlier, **sections), steps[cut:]) == whole[cut:]


def test_a_run_that_was_stopped_and_resumed_starts_to_look_anew(tmp_path):
    stop = {"no_signal": {"for_steps": 3, "action": "stop"}}
    rows = judged(watch(tmp_path, **stop), run((3, NO_TOKEN)))
    assert flagged(rows, "stop") == [3]
    assert flagged(judged(watch(tmp_path, rows, **stop), run((3, NO_TOKEN))), "stop") == [3]


def test_a_warning_that_became_a_stop_on_resuming_stops(tmp_path):
    warned = judged(watch(tmp_path, no_signal={"for_steps": 3}), run((4, NO_TOKEN)))
    assert flagged(warned, "no_signal") == [3] and flagged(warned, "stop") == []
    resumed = watch(tmp_path, warned, no_signal={"for_steps": 3, "action": "stop"})
    assert resumed.judge(5, NO_TOKEN).action == "stop"


def test_what_a_loss_says_is_a_warning_too():
    losses = (pair_logistic_masked(beta=0.1),)
    objectives = [SimpleNamespace(name=name, losses=losses) for name in ("sparsepo", "dpo")]
    assert warnings_of(objectives[:1], {"mask_dead": 0.5}) == {}
    assert list(warnings_of(objectives[:1], {"mask_dead": 1.0})) == ["pair_logistic_masked"]
    assert list(warnings_of(objectives, {"sparsepo/mask_dead": 1.0})) == ["sparsepo/pair_logistic_masked"]


def rollout(logprobs, rewards, reward):
    prompt = Prompt([1], "q", "q", {})
    return Rollout(0, 0, prompt, Response([5] * len(logprobs), logprobs, False), "a", rewards, reward, True)


def test_a_row_is_judged_inside_its_response():
    mask = batch_of([0, 0], [1, 2]).mask
    value = torch.tensor([[1.0, torch.nan], [torch.inf, 1.0]])
    assert unfinite(value, mask).tolist() == [False, True]
    assert unfinite(torch.tensor([torch.nan, 1.0]), mask).tolist() == [True, False]


def test_a_dump_that_cannot_be_written_is_told(tmp_path):
    broken = SimpleNamespace(loop=SimpleNamespace(sources=[]), accelerator=SimpleNamespace(is_main_process=True))
    (tmp_path / "dumps").touch()
    with pytest.raises(files.DiskError, match="dumps/step_1: cannot be written: .*go on with --resume"):
        dump(tmp_path / "dumps/step_1", broken, [])
