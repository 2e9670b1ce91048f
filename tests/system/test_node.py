"""Which processes see one folder, and who of them writes."""

import pytest

from align.system import node
from align.system.node import Node, find, of_main, of_ranks, said


def seen(*groups):
    return [group for rank in range(sum(map(len, groups))) for group in groups if rank in group]


@pytest.mark.parametrize(
    "groups, writers", [([(0, 1, 2, 3)], [0]), ([(0, 1), (2, 3)], [0, 2]), ([(0,), (1, 3), (2,)], [0, 1, 2])]
)
def test_the_first_of_those_that_see_one_folder_writes(groups, writers):
    hosts = [f"host{rank}" for rank in range(len(seen(*groups)))]
    found = [of_ranks(rank, seen(*groups), hosts) for rank in range(len(hosts))]
    assert [rank for rank, one in enumerate(found) if one.writes] == writers
    assert all(one.alone == (len(groups) == 1) and one.host == f"host{one.ranks[0]}" for one in found)
    assert [one.ranks for one in found] == seen(*groups)


def test_one_that_sees_files_of_others_and_is_not_seen_is_alone():
    """As where a folder is there for one machine to read and another to write."""
    assert of_ranks(0, [(0, 1), (1,)], ["a", "b"]).ranks == (0,)


def test_ranks_in_words():
    assert [said(ranks) for ranks in [(3,), (0, 1, 2), (0, 2)]] == ["rank 3", "ranks 0 to 2", "ranks 0, 2"]


@pytest.mark.parametrize("there", ["", "below/it"])
def test_a_folder_is_looked_at_where_it_is_and_nothing_stays(tmp_path, monkeypatch, there):
    monkeypatch.setattr(node, "machines", lambda: 2)
    found = find(tmp_path / there)
    assert found.ranks == (0,) and found.writes and found.alone
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_node_names_it_where_there_are_several():
    def fail():
        raise OSError("full")

    with pytest.raises(OSError, match="^full$"):
        Node().attempt(fail, OSError)
    with pytest.raises(OSError, match=r"^b \(rank 1\): full$"):
        Node((1,), True, False, "b").attempt(fail, OSError)
    with pytest.raises(OSError, match="full"):
        of_main(fail, OSError)
    assert Node((0, 1), writes=False).attempt(fail, OSError) is None and Node().attempt(lambda: 3) == 3
    assert of_main(lambda: 4) == 4
