"""Work beside the main thread: in its order, one piece at a time, and what it raises is not lost."""

import threading

import pytest

from align.system.beside import Beside


def test_the_main_thread_goes_on_and_waits_when_it_says_so():
    beside, go, done = Beside(), threading.Event(), []
    beside.do(lambda: (go.wait(10), done.append(threading.current_thread().name)))
    assert done == []
    go.set()
    beside.wait()
    assert len(done) == 1 and done[0].startswith("beside")
    beside.wait()  # nothing is left


def test_pieces_are_done_one_after_the_other():
    beside, done = Beside(), []
    first = threading.Event()
    beside.do(lambda: (first.wait(0.2), done.append(1)))
    beside.do(lambda: done.append(2))
    assert done[0] == 1
    beside.wait()
    assert done == [1, 2]


def fail():
    raise OSError("no space left")


@pytest.mark.parametrize("then", [lambda b: b.wait(), lambda b: b.do(lambda: None)], ids=["wait", "next"])
def test_what_it_raises_is_raised_once_where_the_main_thread_asks(then):
    beside = Beside()
    beside.do(fail)
    with pytest.raises(OSError, match="no space left"):
        then(beside)
    beside.wait()
