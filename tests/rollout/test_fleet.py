"""Requests over several servers: each is answered exactly once and in order, whatever the servers do."""

import threading
import time
from collections import Counter
from contextlib import contextmanager

import pytest
from support.servers import stand_ins

from align.rollout import fleet
from align.rollout.fleet import Fleet, Limits, Server
from align.rollout.server_http import Behind, Http, Refused, ServerError

BODIES = [
    {"model": "policy", "token_ids": [i, i + 1], "sampling_params": {"n": 1, "max_tokens": 4, "seed": i, "logprobs": 0}}
    for i in range(40)
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(fleet, "AGAIN_S", 0.05)
    monkeypatch.setattr(fleet, "CONNECT_S", 0.5)


@contextmanager
def fleet_of(servers, patience=8.0, rejoin=lambda server: None, sequences=8, examine=lambda server: None, liveness=2.0):
    http, lines = Http(None, 5.0), []
    limits = Limits(liveness, patience, sequences, 0, 1)
    known = [Server(one.url, "p1") for one in servers]
    found = Fleet(known, http, limits, examine, rejoin, "start {}".format, lines.append)
    found.current, found.lines = "p1", lines
    yield found
    http.close()


def asked_of(servers):
    """How often each request was answered."""
    return Counter(ids for one in servers for ids in one.served)


def ids_of(body, reply):
    """A reply belongs to the request that it is taken for."""
    return body["token_ids"], reply["choices"][0]["token_ids"]


def test_each_request_is_answered_once_and_in_order():
    with stand_ins(3) as servers, fleet_of(servers) as found:
        replies = found.answer(BODIES, ids_of)
        again = found.answer(BODIES, ids_of)
    assert [ids for ids, _ in replies] == [body["token_ids"] for body in BODIES] and replies == again
    assert set(asked_of(servers).values()) == {2} and len(asked_of(servers)) == 40
    assert all(one.served for one in servers)


def test_nothing_asked_is_nothing_answered():
    with stand_ins(1) as servers, fleet_of(servers) as found:
        assert found.answer([], ids_of) == []


FAULTS = ["dead", "500", "hang", "no json"]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_server_answered_before_it_failed_is_not_asked_again(fault):
    with stand_ins(2) as servers, fleet_of(servers) as found:
        servers[1].fault, servers[1].after = fault, 5
        servers[0].seconds = servers[1].seconds = 0.01
        replies = found.answer(BODIES, ids_of)
        assert [ids for ids, _ in replies] == [body["token_ids"] for body in BODIES]
        counts = asked_of(servers)
        # what was under way in a server that fails may have been worked on twice; it is counted once
        assert len(counts) == 40 and set(map(tuple, counts)) == {tuple(body["token_ids"]) for body in BODIES}
        assert any(line.startswith(f"{servers[1].url}: lost: ") for line in found.lines)
        assert not any(servers[0].url in line for line in found.lines)


@pytest.mark.parametrize("fault", FAULTS)
def test_where_all_fail_each_is_named_within_the_deadline(fault):
    with stand_ins(2) as servers, fleet_of(servers, patience=1.2, liveness=0.6) as found:
        for one in servers:
            one.fault = fault
        start = time.monotonic()
        with pytest.raises(ServerError) as raised:
            found.answer(BODIES, ids_of)
        assert 1.0 < time.monotonic() - start < 4
        text = str(raised.value)
        assert "no server has answered for 1.2 s" in text
        assert all(f"{one.url}: " in text and f"start {one.url}" in text for one in servers)


@pytest.mark.parametrize("error", [ServerError("half a reply"), Refused("too long")])
def test_a_server_that_answers_and_never_rightly_is_named_within_the_deadline(error):
    """It gives a token when it is looked at, so it is taken back each time."""

    def never(body, reply):
        raise error

    with stand_ins(1) as servers, fleet_of(servers, patience=1.0) as found:
        start = time.monotonic()
        with pytest.raises(ServerError, match=str(error)) as raised:
            found.answer(BODIES, never)
        assert time.monotonic() - start < 3 and servers[0].url in str(raised.value)


def test_a_server_that_is_lost_again_and_again_is_tried_less_and_less():
    def never(body, reply):
        raise ServerError("half a reply")

    with stand_ins(1) as servers, fleet_of(servers, patience=1.5) as found:
        found.limits = Limits(0.03, 1.5, 8, 0, 1)
        with pytest.raises(ServerError):
            found.answer(BODIES, never)
        assert 1 <= sum("is back" in line for line in found.lines) <= 6  # at 0, 0.05, 0.15, 0.35, 0.75, 1.55 s


def test_an_error_of_our_own_is_raised_as_it_is():
    def broken(body, reply):
        raise KeyError("ours")

    with stand_ins(2) as servers, fleet_of(servers) as found, pytest.raises(KeyError, match="ours"):
        found.answer(BODIES, broken)


def test_a_server_that_may_not_come_back_says_why():
    def rejoin(server):
        raise ServerError("other weights")

    with stand_ins(1) as servers, fleet_of(servers, patience=1.0, rejoin=rejoin) as found:
        servers[0].fault, servers[0].after = "500", 3
        threading.Timer(0.3, lambda: setattr(servers[0], "fault", None)).start()
        with pytest.raises(ServerError, match="other weights"):
            found.answer(BODIES, ids_of)


def behind(server):
    raise Behind("it has other weights; it gets the policy at the next sync")


def test_a_call_ends_at_once_where_a_sync_alone_would_help():
    """Which comes only after it."""

    def restarted(body, reply):
        raise ServerError("other weights")

    with stand_ins(3) as servers, fleet_of(servers, patience=30.0, rejoin=behind) as found:
        servers[2].fault, start = "dead", time.monotonic()
        with pytest.raises(ServerError, match="no server has the policy") as raised:
            found.answer(BODIES, restarted)
        text = str(raised.value)
        assert time.monotonic() - start < 10 and f"start it with start {servers[2].url}" in text
        what = "it has other weights; it gets the policy at the next sync, or by --resume\n"
        assert f"  {servers[0].url}: {what}" in text and f"  {servers[1].url}: {what}" in text


def test_a_server_that_needs_a_sync_is_not_waited_for_while_another_one_works():
    """Nor is that forgotten where the call ends in the middle of the next try."""
    tries = []

    def slower(server):
        tries.append(server)
        time.sleep(len(tries[1:]))
        behind(server)

    with stand_ins(2) as servers, fleet_of(servers, rejoin=slower) as found:
        servers[0].seconds = 0.15
        found.servers[1].weights = None
        assert len(found.answer(BODIES, ids_of)) == 40 and found.servers[1].behind
        assert len(tries) > 1


def test_no_port_answers():
    class Gone:
        url = "http://127.0.0.1:9"

    with fleet_of([Gone], patience=0.6) as found, pytest.raises(ServerError, match="127.0.0.1:9: .*ConnectError"):
        found.answer(BODIES[:1], ids_of)


def test_a_server_that_tells_no_tokens_is_not_taken_for_a_busy_one(monkeypatch):
    """Its page of metrics has another form, or says text where a number should be."""
    with stand_ins(2) as servers, fleet_of(servers) as found:
        servers[1].fault = "hang"
        servers[1].tokens = "many"
        assert len(found.answer(BODIES, ids_of)) == 40
        assert any("it hangs: one token takes more than 2 s" in line for line in found.lines)


@pytest.mark.parametrize("n, ranks, room", [(1, 1, 96), (8, 1, 12), (64, 1, 2), (256, 1, 1), (8, 4, 3), (8, 100, 1)])
def test_a_rank_asks_for_a_little_more_than_its_share_of_what_a_server_works_on(n, ranks, room):
    assert Limits(30, 60, 64, 0, ranks).room(n) == room


def test_the_first_requests_of_the_ranks_go_to_different_servers():
    for rank in range(2):
        with stand_ins(2) as servers, fleet_of(servers) as found:
            found.limits = Limits(2.0, 8.0, 8, rank, 2)
            found.answer(BODIES[:1], ids_of)
            assert [len(one.served) for one in servers] == ([1, 0] if rank == 0 else [0, 1])


def test_a_server_is_lost_once():
    with fleet_of([]) as found:
        server = Server("http://a:1", "p1")
        found.servers = [server, Server("http://b:1", "p0")]
        assert found.ready == [server]
        found.lose(server, "one")
        found.lose(server, "two")
        assert found.lines == ["http://a:1: lost: one; its requests go to the other servers"]
        assert "http://a:1: two; start" in found.none_left() and "--resume" in found.none_left()
        found.gain(server)
        assert found.ready == [server] and found.lines[-1] == "http://a:1: it is back, and has the policy"
