"""What nodes without a shared folder agree on, from what each of them has."""

import pytest
from support.checkpoints import find_on_all, saved

from align.checkpoint import resume
from align.checkpoint.agreement import Part, held, intact_on_all, newest, part
from align.checkpoint.checkpoint import CheckpointError
from align.system.node import Node

LINEAGE = ((0, "recipe"),)


def parts(*steps, problem=None, lineage=LINEAGE):
    return [Part(step, problem, lineage) for step in steps]


def test_the_newest_step_that_is_intact_on_all_nodes_comes_first():
    whole, wrong = intact_on_all({"a": parts(2, 4, 6), "b": [*parts(2, 4), *parts(6, problem="step_6: cut")]})
    assert whole == [4, 2] and wrong == {6: "b: step_6: cut"}
    whole, wrong = intact_on_all({"a": parts(2, 4), "b": parts(2), "c": []})
    assert whole == [] and wrong == {
        4: "step_4: b has no part of it; step_4: c has no part of it",
        2: "step_2: c has no part of it",
    }
    assert intact_on_all({"a": [], "b": []}) == ([], {})


def test_parts_of_different_runs_are_no_checkpoint():
    whole, wrong = intact_on_all({"a": parts(2, 4), "b": [*parts(2), *parts(4, lineage=((0, "other"),))]})
    assert whole == [2] and wrong == {4: "step_4: its parts on a and b are of different runs"}


def test_a_node_that_has_other_ranks_than_before_is_told(tmp_path):
    first, second = Node((0,), True, False, "a"), Node((1,), True, False, "b")
    (mine,) = saved(tmp_path, 2, node=first, processes=2)
    assert part(mine, first) == Part(2, None, LINEAGE)
    told = part(mine, second).problem
    assert "has the parts of rank 0, and here is rank 1; start each node with the machine_rank" in told
    (shared,) = saved(tmp_path / "shared", 2, processes=2)
    assert part(shared, second).problem is None  # all ranks wrote there


def test_a_part_that_is_damaged_or_of_something_else_is_told(tmp_path):
    one, other = saved(tmp_path, 2, 4)
    (one / "engine/weights").write_text("")
    assert part(one, Node()).problem.endswith("engine/weights is not as it was written")
    assert held([one, other], Node(host="a")) == {"a (rank 0)": [part(one, Node()), part(other, Node())]}
    assert newest(tmp_path / "checkpoints", Node(), before=5) == 4
    assert newest(tmp_path / "checkpoints", Node(), before=3) is None


def test_a_run_goes_on_from_what_all_nodes_have(tmp_path):
    two, four = saved(tmp_path, 2, 4)
    origin = find_on_all(tmp_path, {"a": parts(2, 4), "b": parts(2)}, out=tmp_path)
    assert (origin.checkpoint, origin.step, origin.in_place) == (two, 2, True)
    assert origin.passed_over == ("step_4: b has no part of it",)
    named = find_on_all(four, {"a": parts(4), "b": parts(4)}, out=tmp_path / "elsewhere")
    assert named.checkpoint == four and not named.in_place and named.passed_over == ()
    older = find_on_all(tmp_path, {"a": [*parts(4), *parts(2, problem="cut")], "b": parts(4)}, out=tmp_path)
    assert older.checkpoint == four and older.passed_over == ()


def test_a_run_that_was_killed_while_its_first_checkpoint_got_its_name_starts_anew(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {}\nrun: {}")
    for nodes in ({"a": parts(2), "b": []}, {"a": [], "b": []}):
        origin = find_on_all(tmp_path, nodes, out=tmp_path)
        assert origin.checkpoint is None and origin.in_place and origin.step == 0


@pytest.mark.parametrize("nodes", [{"a": parts(2, 4), "b": []}, {"a": parts(2), "b": parts(4)}])
def test_nodes_that_have_lost_what_they_had_are_told(tmp_path, nodes):
    with pytest.raises(CheckpointError, match=r"intact on all nodes; start anew without it\nstep_4: . has no part"):
        find_on_all(tmp_path, nodes, out=tmp_path)


def test_a_folder_without_any_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="there: holds no checkpoint on any node"):
        find_on_all(tmp_path / "there", {"a": [], "b": []}, out=tmp_path / "run")
    assert resume.parts(resume.Run(out="x", steps=1, resume=str(tmp_path)), Node()) == {" (rank 0)": []}
