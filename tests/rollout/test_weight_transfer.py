"""Whole weights over gloo: a trainer and workers in threads of one process, without an engine. NCCL: not run here."""

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import psutil
import pytest
import torch
from support.zygote import free_port
from torch.distributed import TCPStore

from align.rollout import weight_transfer
from align.rollout.server_control import Absent
from align.rollout.weight_transfer import GlooEngine, Source, Tensors, connect, tensors, trainer_info

WEIGHTS = [
    ("embedding", torch.arange(12, dtype=torch.float32).view(3, 4)),
    ("norm", torch.tensor([1.5, -2.0, 0.25], dtype=torch.bfloat16)),
    ("scale", torch.tensor(7.0)),
    ("turned", torch.arange(6, dtype=torch.float32).view(2, 3).T),  # not contiguous
    ("head", torch.full((5, 2), 3, dtype=torch.float16)),
]


class Model:
    def __init__(self):
        self.loaded = {}

    def load_weights(self, weights):
        self.loaded |= {name: value.clone() for name, value in weights}


class Worker(GlooEngine):
    """Of a server that has one process."""

    def __init__(self):
        self.parallel_config = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
        self.model = Model()


class Client:
    """Asks workers in threads, as servers do."""

    def __init__(self, count, fault=None):
        self.workers, self.fault, self.calls = [Worker() for _ in range(count)], fault, []

    def _all(self, name, do):
        self.calls.append(name)
        if self.fault == name:
            raise RuntimeError(f"no {name}")
        with ThreadPoolExecutor(len(self.workers)) as pool:
            list(pool.map(do, range(len(self.workers))))

    def init_weight_transfer_engine(self, info):
        def join(i):
            found = self.workers[i].parse_init_info(info | {"rank_offset": info["rank_offset"] + i})
            self.workers[i].init_transfer_engine(found)

        self._all("init", join)

    def start_weight_update(self):
        self._all("start", lambda i: None)

    def update_weights(self, info):
        found = Tensors(**info)
        self._all("update", lambda i: self.workers[i].receive_weights(found))

    def finish_weight_update(self, weight_version=None):
        self._all("finish", lambda i: None)


def connected(client, source, seconds=10.0):
    info = trainer_info("gloo", "127.0.0.1", free_port(), 1 + len(client.workers), 0, seconds)
    return connect(info, client, source)


@pytest.mark.parametrize("bucket", [1, 48, 2**26])
def test_every_worker_gets_every_weight_to_the_bit_each_time(bucket, monkeypatch):
    monkeypatch.setattr(weight_transfer, "BUCKET", bucket)
    source, client = Source(lambda: iter(WEIGHTS)), Client(2)
    transfer = connected(client, source)
    transfer.send_weights()
    more = [(name, value + 1) for name, value in WEIGHTS]
    for sent in (WEIGHTS, more):
        source.give = lambda sent=sent: iter(sent)
        transfer.send_weights()
        for worker in client.workers:
            assert [*worker.model.loaded] == [name for name, _ in sent]
            for name, value in sent:
                got = worker.model.loaded[name]
                assert got.dtype == value.dtype and torch.equal(got, value)
    assert client.calls == ["init", *["start", "update", "finish"] * 3]
    transfer.shutdown()
    assert transfer.group is None


def test_what_travels_together_is_bounded_and_whole(monkeypatch):
    monkeypatch.setattr(weight_transfer, "BUCKET", 50)
    found = tensors(Source(lambda: iter(WEIGHTS)).metadata())
    assert found.buckets == [[(0, 48)], [(1, 6), (2, 4), (3, 24)], [(4, 20)]]
    assert found.dtypes == [value.dtype for _, value in WEIGHTS]
    assert found.shapes == [list(value.shape) for _, value in WEIGHTS]


def test_a_worker_that_refuses_to_join_is_told_at_once():
    with pytest.raises(RuntimeError, match="no init"):
        connected(Client(1, "init"), Source(lambda: iter(WEIGHTS)))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_trainers_store_is_reached_at_the_groups_address_alone(address):
    if address == "::1" and not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("no IPv6 here")
    client, port = Client(1), free_port()
    transfer = connect(trainer_info("gloo", address, port, 2, 0, 10.0), client, Source(lambda: iter(WEIGHTS)))
    transfer.send_weights()
    assert len(client.workers[0].model.loaded) == len(WEIGHTS)
    assert {one.laddr.ip for one in psutil.Process().net_connections() if one.laddr.port == port} == {address}
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", port))


def test_workers_that_never_come_are_counted():
    client = Client(2)
    stay, client.workers[1].init_transfer_engine = threading.Event(), lambda info: stay.wait(5)
    client.workers[0].init_transfer_engine = lambda info: _here(info)
    what = "1 of 2 workers of the servers came within 0.5 s; open the way from each to 127.0.0.1"
    with pytest.raises(Absent, match=what) as raised:
        connected(client, Source(lambda: iter(WEIGHTS)), seconds=0.5)
    assert raised.value.ranks == [2]
    stay.set()


def _here(info):
    """Come, and no further."""
    store = TCPStore(
        info.master_address, info.master_port, info.world_size, is_master=False, wait_for_workers=False,
        timeout=timedelta(seconds=5),
    )  # fmt: skip
    store.set(f"here/{info.rank_offset}", "")


@pytest.mark.parametrize("fault", ["start", "update", "finish"])
def test_a_refusal_on_the_way_is_raised(fault):
    client = Client(1)
    transfer = connected(client, Source(lambda: iter(WEIGHTS)), seconds=1.0)
    client.fault = fault
    with pytest.raises(RuntimeError):
        transfer.send_weights()


def test_a_worker_that_hangs_ends_the_broadcast():
    client = Client(1)
    transfer = connected(client, Source(lambda: iter(WEIGHTS)), seconds=1.0)
    over = threading.Event()
    client.workers[0].receive_weights = lambda info: over.wait(20)
    with pytest.raises(RuntimeError):  # gloo's own words
        for _ in range(50):  # small ones may be on their way before anybody takes them
            transfer.group.broadcast(torch.zeros(2**22), 0).wait()
    over.set()


def test_a_pass_that_broke_off_is_gone_through_to_its_end():
    """The other ranks gather each weight that this one does."""
    passes = []

    def give():
        passes.append(0)
        for item in WEIGHTS:
            passes[-1] += 1
            yield item

    source = Source(give)
    source.metadata()
    source.metadata()
    assert passes == [5]  # once, whatever it is asked
    source.begin()
    values = iter(source)
    next(values)
    source.drain()
    assert passes == [5, 5]
    source.begin()
    source.drain()  # never begun
    assert passes == [5, 5, 5]
    source.drain()  # ended
    source.begin()
    list(source)
    source.drain()
    assert passes[-1] == 5


def test_both_ways_are_known_to_vllm():
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

    for factory in (WeightTransferEngineFactory, WeightTransferTrainerFactory):
        assert {"gloo", "nccl"} <= set(factory._registry)
