"""How the policy gets to servers, and what is said of those that it does not get to."""

import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from support.servers import stand_ins
from torch import nn

from align.rollout import server_weights
from align.rollout.fleet import Server
from align.rollout.server_control import Absent
from align.rollout.server_http import Http, Refused, ServerError
from align.rollout.server_weights import Adapters, Whole, each, group_address, with_no_answer
from align.system.deadline import DeadlineError, deadline

WEIGHTS = [("a", torch.zeros(2)), ("b", torch.ones(3))]


@pytest.fixture(autouse=True)
def one_process():
    PartialState(cpu=True)


@pytest.fixture
def http():
    found = Http(None, 2.0)
    yield found
    found.close()


class Transfer:
    """In place of vLLM's: it goes through the weights as that does, and fails where it is told to."""

    opened, fails = [], 0

    def __init__(self, info, control, source):
        self.info, self.control, self.source, self.ended = info, control, source, False
        Transfer.opened.append(self)
        control.init_weight_transfer_engine({"rank_offset": 1})

    def send_weights(self):
        self.control.start_weight_update()
        values = iter(self.source)
        next(values)
        if Transfer.fails:
            Transfer.fails -= 1
            raise RuntimeError("connection closed by peer")
        list(values)
        self.control.update_weights({"names": ["a", "b"]})
        self.control.finish_weight_update()

    def shutdown(self):
        self.ended = True


@pytest.fixture
def gathered(monkeypatch):
    """[weights that each pass gave]: on several ranks each of them is a collective."""
    passes, module = [], ModuleType("align.rollout.weight_transfer")
    Transfer.opened, Transfer.fails = [], 0

    def give(model):
        passes.append(0)
        for item in WEIGHTS:
            passes[-1] += 1
            yield item

    class Source:
        def __init__(self, give):
            self.give, self._under_way = give, None

        def metadata(self):
            return None

        def __iter__(self):
            self._under_way = self.give()
            return self._under_way

        def begin(self):
            self._under_way = None

        def drain(self):
            for _ in self.give() if self._under_way is None else self._under_way:
                pass

    module.Source, module.connect, module.trainer_info = Source, Transfer, lambda *info: info
    monkeypatch.setitem(sys.modules, "align.rollout.weight_transfer", module)
    monkeypatch.setattr(sys.modules["align.rollout"], "weight_transfer", module, raising=False)
    monkeypatch.setattr(server_weights.weights, "merged", give)
    return passes


CLOSED = ("finish_weight_update", None)


def whole(http, rank=0):
    def examine(server):
        server.instance = http.call(server.url, "align_facts", 0.3)["instance"]

    return Whole(http, rank, examine, "gloo", 5.0, 2.0)


def test_whole_weights_go_to_all_servers_over_one_group(http, gathered):
    with stand_ins(2) as servers:
        way, known = whole(http), [Server(one.url) for one in servers]
        assert way.start(nn.Linear(1, 1), "v0", known) == {one.url: None for one in servers}
        assert way.send(None, "v1", known) == {one.url: None for one in servers}
        assert [one.weights for one in servers] == ["v1", "v1"] and not any(one.paused for one in servers)
        assert all(CLOSED not in one.sent for one in servers)  # vLLM logs an error where there is nothing to close
        assert len(Transfer.opened) == 1 and gathered == [2, 2]
        backend, _, _, world, rank, seconds = Transfer.opened[0].info
        assert (backend, world, rank, seconds) == ("gloo", 3, 0, 5.0)
        way.give(known[0], "v1")
        assert way.proof("v1") == ("policy", "v1")
        way.end(known)
        assert Transfer.opened[0].ended and servers[0].sent[-1][0] == "shutdown_weight_transfer_engine"


def test_workers_of_each_server_join_behind_those_before(http, gathered):
    with stand_ins(3) as servers:
        servers[0].workers, servers[1].workers = 2, 4
        whole(http).send(None, "v1", [Server(one.url) for one in servers])
        joined = [dict(one.sent)["init_weight_transfer_engine"]["init_info"]["rank_offset"] for one in servers]
        assert joined == [1, 3, 7] and Transfer.opened[0].info[3] == 8


@pytest.mark.parametrize("change", ["dead", "restarted"])
def test_the_group_is_opened_anew_where_its_servers_are_others(http, gathered, change):
    with stand_ins(2) as servers:
        way, known = whole(http), [Server(one.url) for one in servers]
        way.send(None, "v1", known)
        if change == "dead":
            servers[1].fault = "dead"
        else:
            servers[1].restart()
        states = way.send(None, "v2", known)
        assert states[servers[0].url] is None and (states[servers[1].url] is None) is (change == "restarted")
        assert len(Transfer.opened) == 2 and servers[0].weights == "v2" and gathered == [2, 2]


def test_a_transfer_that_broke_off_is_sent_again_and_gathered_whole_each_time(http, gathered):
    with stand_ins(2) as servers:
        way, known = whole(http), [Server(one.url) for one in servers]
        way.send(None, "v1", known)
        Transfer.fails = 2
        assert set(way.send(None, "v2", known).values()) == {None}
        assert [one.weights for one in servers] == ["v2", "v2"] and not any(one.paused for one in servers)
        assert gathered == [2, 2, 2, 2] and len(Transfer.opened) == 3
        assert all(one.sent.count(CLOSED) == 2 for one in servers)  # what each failure left open


def test_a_transfer_that_breaks_off_each_time_is_told_of_every_server(http, gathered):
    with stand_ins(2) as servers:
        Transfer.fails = 99
        states = whole(http).send(None, "v1", [Server(one.url) for one in servers])
        what = "the transfer of weights failed: RuntimeError: connection closed by peer"
        assert states == {one.url: what for one in servers}
        assert gathered == [2] * server_weights.ATTEMPTS


def test_a_sync_that_is_overdue_is_not_tried_again(http, gathered, monkeypatch):
    def late(self):
        next(iter(self.source))
        raise DeadlineError("overdue")

    monkeypatch.setattr(Transfer, "send_weights", late)
    with stand_ins(1) as [one], pytest.raises(DeadlineError, match="overdue"):
        whole(http).send(None, "v1", [Server(one.url)])
    assert gathered == [1]


def test_a_deadline_waits_for_no_server_that_hangs():
    over, start = threading.Event(), time.monotonic()
    with pytest.raises(DeadlineError), deadline("a sync", 0.2):
        each([Server("http://h:1")], lambda server: over.wait(3))
    assert time.monotonic() - start < 2
    over.set()


def test_another_rank_gathers_alone_and_asks_nobody(http, gathered):
    with stand_ins(1) as [one]:
        assert whole(http, rank=1).send(None, "v1", [Server(one.url)]) == {}
        assert not one.seen and gathered == [2] * server_weights.ATTEMPTS  # nobody told it that the first has done it


def test_a_server_that_cannot_join_is_left_out_and_the_others_go_on(http, gathered, monkeypatch):
    """It answers over HTTP, and does not come to the trainer's store."""
    init = Transfer.__init__

    def join(self, info, control, source):
        init(self, info, control, source)
        if control.workers[1:]:
            raise Absent("2 of 4 workers came", [2, 3])

    monkeypatch.setattr(Transfer, "__init__", join)
    with stand_ins(3) as servers:
        servers[1].workers = 2
        states = whole(http).send(None, "v1", [Server(one.url) for one in servers[:2]])
        assert states == {
            servers[0].url: None,
            servers[1].url: "the transfer of weights failed: Absent: 2 of 4 workers came",
        }
        assert servers[0].weights == "v1" and gathered == [2, 2]


@pytest.mark.parametrize("path", ["/init_weight_transfer_engine", "/update_weights", "/get_world_size"])
def test_a_server_that_fails_in_a_transfer_is_left_out_of_the_next(http, gathered, path):
    with stand_ins(3) as servers:
        before = servers[1].answer
        servers[1].answer = lambda asked, body: (500, {"error": "ill"}) if asked == path else before(asked, body)
        states = whole(http).send(None, "v1", [Server(one.url) for one in servers])
        assert f"failed: {servers[1].url}: {path} gave 500" in states[servers[1].url]
        assert [states[one.url] for one in servers[::2]] == [None, None] and gathered == [2, 2]


def test_a_server_that_failed_is_tried_again_where_it_is_the_only_one(http, gathered):
    with stand_ins(2) as servers:
        fails, before = [1], servers[1].answer

        def answer(path, body):
            return (500, {}) if path == "/update_weights" and fails and fails.pop() else before(path, body)

        servers[1].answer, servers[0].fault = answer, "dead"
        assert whole(http).send(None, "v1", [Server(one.url) for one in servers])[servers[1].url] is None


@pytest.mark.parametrize("version, what", [("default", "of its files"), ("v0", "v0 of another run or sync")])
def test_a_server_that_lost_whole_weights_waits_for_the_next_sync(http, gathered, version, what):
    with stand_ins(1) as [one]:
        one.weights = version
        with pytest.raises(ServerError, match=f"has the weights {what}; it gets the policy at the next sync"):
            whole(http).give(Server(one.url), "v1")


def test_one_servers_failure_is_its_own():
    servers = [Server(f"http://h:{i}") for i in range(4)]

    def do(server):
        if server is servers[1]:
            raise ServerError("ill")
        if server is servers[2]:
            raise Refused("wrong")

    found = each(servers, do)
    assert found == dict(zip((one.url for one in servers), (None, "ill", "wrong", None), strict=True))
    with pytest.raises(ZeroDivisionError):
        each(servers, lambda server: 1 / 0)


def test_what_need_not_be_done_may_fail():
    def fail(error):
        raise error

    with_no_answer(fail, ServerError("ill"))
    with pytest.raises(ZeroDivisionError):
        with_no_answer(fail, ZeroDivisionError())


@pytest.mark.parametrize(
    "urls, seen",
    [
        (["http://127.0.0.1:8000"], "127.0.0.1"),
        (["http://[::1]:8000"], "::1"),
        (["http://localhost:8000", "http://10.1.2.3:8000"], "10.1.2.3"),
        (["http://10.1.2.3:8000", "http://127.0.0.1:8000", "http://10.4.5.6:8000"], "10.1.2.3"),
    ],
)
def test_the_groups_address_is_one_that_all_servers_reach(urls, seen, monkeypatch):
    """A server elsewhere does not reach the loopback one."""
    known = server_weights.address_towards
    monkeypatch.setattr(server_weights, "address_towards", lambda host: host if host[0] == "1" else known(host))
    assert group_address(urls) == seen


@pytest.fixture
def adapters(http, monkeypatch):
    def save(model, folder, write):
        for file in server_weights.FILES:
            (folder / file).write_text(file)

    monkeypatch.setattr(server_weights.weights, "save", save)
    return lambda rank=0: Adapters(http, rank, lambda server: None)


def test_an_adapter_goes_to_each_server_once(adapters):
    with stand_ins(2) as servers:
        way, known = adapters(), [Server(one.url) for one in servers]
        way.start(None, "policy-x-v0", known)
        assert way.proof("policy-x-v0") == ("policy", "default")  # the base
        way.send(None, "policy-x-v1", known)
        way.give(known[0], "policy-x-v1")
        assert [one.seen.count("/v1/load_lora_adapter") for one in servers] == [1, 1]
        assert way.proof("policy-x-v1") == ("policy-x-v1", "default")


def test_adapters_of_other_runs_stay(adapters):
    with stand_ins(1) as [one]:
        one.adapters = {"policy-y-v1": "/y", "policy-xx-v1": "/xx"}
        way, known = adapters(), [Server(one.url)]
        for i in range(4):
            way.send(None, f"policy-x-v{i}", known)
        assert set(one.adapters) == {"policy-y-v1", "policy-xx-v1", "policy-x-v2", "policy-x-v3"}
        way.end(known)
        assert set(one.adapters) == {"policy-y-v1", "policy-xx-v1"}


@pytest.mark.parametrize("answer", [{}, {"data": None}, {"data": [{}]}, "text"])
def test_a_list_of_models_that_is_none_names_the_server(adapters, answer):
    with stand_ins(2) as servers:
        before = servers[1].answer
        servers[1].answer = lambda path, body: (200, answer) if path == "/v1/models" else before(path, body)
        states = adapters().send(None, "policy-x-v1", [Server(one.url) for one in servers])
        assert states[servers[0].url] is None and "cannot be read" in states[servers[1].url]


def test_every_rank_can_give_the_adapter_to_a_server_that_comes_back(adapters):
    with stand_ins(1) as [one]:
        other = adapters(rank=1)
        assert other.send(None, "policy-x-v1", [Server(one.url)]) == {} and not one.adapters
        other.give(Server(one.url), "policy-x-v1")
        assert list(one.adapters) == ["policy-x-v1"]
        other.end([Server(one.url)])
        assert one.adapters  # the first rank does that


def test_the_base_of_an_adapted_policy_is_sent_first(http, gathered, monkeypatch):
    sent = []
    monkeypatch.setattr(server_weights.weights, "base", lambda model: (sent.append("base"), iter(WEIGHTS))[1])
    with stand_ins(1) as [one]:
        whole(http).start(SimpleNamespace(peft_config={}), "v0", [Server(one.url)])
    assert sent and not gathered
