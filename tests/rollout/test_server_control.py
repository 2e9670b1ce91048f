"""What several servers are asked at once in a transfer of weights, and which one is named where it fails."""

import threading

import pytest
from support.servers import stand_ins

from align.rollout.server_control import Control
from align.rollout.server_http import Http, ServerError


@pytest.fixture
def http():
    found = Http(None, 2.0)
    yield found
    found.close()


def control(http, servers):
    return Control(http, [one.url for one in servers], 0.5)


@pytest.mark.parametrize("fault", ["dead", "hang"])
def test_a_server_that_fails_in_a_transfer_is_named_at_once(http, fault):
    """Though the other one may wait for it."""
    with stand_ins(2) as servers:
        found, slow = control(http, servers), threading.Event()
        servers[1].fault = fault
        servers[0].transfer = lambda path, body: (slow.wait(3), (200, {}))[1]
        with pytest.raises(ServerError, match=servers[1].url if fault == "dead" else "no answer in time"):
            found.each("start_weight_update")
        slow.set()


def test_a_server_that_does_not_say_how_many_workers_it_has(http):
    with stand_ins(1) as servers:
        servers[0].answer = lambda path, body: (200, {"size": 1})
        with pytest.raises(ServerError, match="cannot be read"):
            control(http, servers)


def test_whose_workers_are_missing(http):
    with stand_ins(3) as servers:
        servers[0].workers, servers[1].workers = 2, 3
        found, urls = control(http, servers), [one.url for one in servers]
        assert found.servers_of([]) == set()
        assert found.servers_of([2]) == {urls[0]} and found.servers_of([3, 5, 6]) == {urls[1], urls[2]}
