"""Whole weights for vLLM servers: over gloo on CPUs, as vLLM brings over NCCL on GPUs.

A server's workers import it (`--worker-extension-cls`), and so does a trainer that sends whole weights. vLLM's own
weight transfer is the one code path: on GPUs its backend is NCCL, on CPUs the one here, and only the information that
they start from differs (`trainer_info`). Read against vLLM 0.32; NCCL was not yet run here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore
from vllm.distributed.utils import init_gloo_process_group
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

from align.rollout.mixtures import pack_experts
from align.rollout.server_control import Absent
from align.system.network import listening

BUCKET = 2**26  # bytes that travel at once


@dataclass
class GlooInit(WeightTransferInitInfo):
    """From what a worker joins the group; the trainer is its rank 0."""

    master_address: str
    master_port: int
    rank_offset: int  # of the server's first worker
    world_size: int
    seconds: float  # of one broadcast, after which it counts as hung


@dataclass
class Tensors(WeightTransferUpdateInfo):
    """What is about to be sent, in order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]

    @property
    def dtypes(self) -> list[torch.dtype]:
        """The type of each."""
        return [getattr(torch, name) for name in self.dtype_names]

    @property
    def buckets(self) -> list[list[tuple[int, int]]]:
        """[(index, bytes)] of those that travel together; both sides cut alike."""
        sizes = [
            torch.Size(shape).numel() * dtype.itemsize for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        ]
        out, used = [[]], 0
        for index, size in enumerate(sizes):
            if out[-1] and used + size > BUCKET:
                out.append([])
                used = 0
            out[-1].append((index, size))
            used += size
        return out


class GlooEngine(WeightTransferEngine):
    """Receives weights in a worker, and loads them as if they came from the model's files."""

    init_info_cls, update_info_cls = GlooInit, Tensors
    group = None

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        """Join the trainer's group."""
        parallel = self.parallel_config
        own = parallel.data_parallel_index * parallel.world_size + parallel.rank
        self.group = _join(init_info, init_info.rank_offset + own)

    def start_weight_update(self) -> None:
        """Get ready for weights layer by layer."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Tensors) -> None:
        """Take all of them."""
        for bucket in update_info.buckets:
            flat = torch.empty(sum(size for _, size in bucket), dtype=torch.uint8)
            self.group.broadcast(flat, 0).wait()
            parts = zip(bucket, flat.split([size for _, size in bucket]), strict=True)
            self.model.load_weights(  # each a copy, for in the bucket its first byte may lie where no number begins
                (update_info.names[i], part.clone().view(update_info.dtypes[i]).view(update_info.shapes[i]))
                for (i, _), part in parts
            )

    def finish_weight_update(self) -> None:
        """Put what was loaded in its place."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        pack_experts(self.model)

    def shutdown(self) -> None:
        """Leave the group."""
        self.group = None


@dataclass
class GlooTrainerInfo(TrainerInitInfo):
    """From what the trainer opens the group."""

    backend: ClassVar[str] = "gloo"

    master_address: str
    master_port: int
    world_size: int
    seconds: float


class GlooTrainer(TrainerWeightTransferEngine[GlooTrainerInfo]):
    """Sends weights to the workers of all servers at once."""

    init_info_cls = GlooTrainerInfo
    group = None

    @classmethod
    def trainer_init(cls, init_info, *, client, source=None):
        """Open the group. The workers wait for it inside the request that asks them to join."""
        self = cls(client=client, source=source, is_sender=init_info.is_sender)
        if self.is_sender:
            address, port = init_info.master_address, init_info.master_port
            worker = GlooInit(address, port, 1, init_info.world_size, init_info.seconds)
            pool = ThreadPoolExecutor(1)
            asked = pool.submit(client.init_weight_transfer_engine, asdict(worker))
            pool.shutdown(wait=False)
            self.group = _join(init_info, 0, lambda: asked.done() and asked.result())
            asked.result()
        return self

    def send_weights(self) -> None:
        """Send all of them, as `TrainerWeightTransferEngine.send_weights` says."""
        sent = tensors(self.source.metadata())
        values = iter(self.source)
        if not self.is_sender:
            for _ in values:
                pass
            return
        self.client.start_weight_update()
        pool = ThreadPoolExecutor(1)
        asked = pool.submit(self.client.update_weights, asdict(sent))
        pool.shutdown(wait=False)
        for bucket in sent.buckets:
            parts = [next(values)[1].detach().cpu().contiguous().view(-1).view(torch.uint8) for _ in bucket]
            if asked.done():
                asked.result()  # refused before anything was sent
            self.group.broadcast(torch.cat(parts), 0).wait()
        asked.result()
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        """Leave the group."""
        self.group = None


def _join(info: GlooInit | GlooTrainerInfo, rank: int, failed: Callable[[], None] = lambda: None):
    """This process's place in the group of a trainer and the workers of its servers.

    The trainer has the store itself, at the group's address alone: torch's own would listen at all that this machine
    has, and where torch's launcher started it, torch's `rendezvous` would look for the launcher's there. It waits until
    all the others are there, or `failed` raises, before it meets them, so that what is told is how many came, or why
    they could not.
    """
    patience = timedelta(seconds=info.seconds)
    place = info.master_address, info.master_port
    own = {"master_listen_fd": listening(*place).detach()} if rank == 0 else {}
    waits = dict(is_master=rank == 0, wait_for_workers=False, timeout=patience)
    store = TCPStore(*place, info.world_size, **waits, **own)
    if rank == 0:
        _wait_for_all(info, store, failed)
    else:
        store.set(f"here/{rank}", "")
    named = PrefixStore("align", store)
    return init_gloo_process_group(named, group_rank=rank, group_size=info.world_size, timeout=patience)


def _wait_for_all(info: GlooTrainerInfo, store: TCPStore, failed: Callable[[], None]) -> None:
    """Wait until all workers have come. Raises `Absent` with those that have not in time, and what `failed` raises."""
    until, keys = time.monotonic() + info.seconds, {rank: f"here/{rank}" for rank in range(1, info.world_size)}
    while not store.check([*keys.values()]):
        failed()
        if time.monotonic() > until:
            gone = [rank for rank, key in keys.items() if not store.check([key])]
            came = f"{len(keys) - len(gone)} of {len(keys)} workers of the servers"
            where = f"{info.master_address}, any port"
            raise Absent(f"{came} came within {info.seconds:g} s; open the way from each to {where}", gone)
        time.sleep(0.02)


def trainer_info(backend: str, address: str, port: int, world: int, rank: int, seconds: float) -> TrainerInitInfo:
    """From what a transfer starts on the trainer's side; `world`: workers of all servers and the trainer."""
    if backend == "gloo":
        return GlooTrainerInfo(address, port, world, seconds, rank=rank)
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    return NCCLTrainerInitInfo(address, port, world, rank=rank)


def connect(info: TrainerInitInfo, client, source: Source) -> TrainerWeightTransferEngine:
    """Open the group of the trainer and its servers."""
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)


class Source(WeightSource):
    """The trainer's weights as vLLM asks for them. Each pass is collective where they are partitioned."""

    def __init__(self, give: Callable[[], Iterator[tuple[str, Tensor]]]):
        self.give = give
        self._metadata, self._under_way = None, None

    def metadata(self) -> list[ParamMeta]:
        """The name, type and shape of each, by one pass: what a library splits on its way is only known then."""
        if self._metadata is None:
            self._metadata = [ParamMeta(name, value.dtype, tuple(value.shape)) for name, value in self.give()]
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._under_way = self.give()
        return self._under_way

    def begin(self) -> None:
        """Forget the pass before."""
        self._under_way = None

    def drain(self) -> None:
        """Go through what is left of a pass that broke off, or never began: the other ranks gather it too."""
        for _ in self.give() if self._under_way is None else self._under_way:
            pass


def tensors(found: Sequence[ParamMeta]) -> Tensors:
    """What is sent, as the workers are told."""
    names, kinds = [one.name for one in found], [str(one.dtype).removeprefix("torch.") for one in found]
    return Tensors(names, kinds, [list(one.shape) for one in found])


if "gloo" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("gloo", GlooEngine)
    WeightTransferTrainerFactory.register_engine("gloo", GlooTrainer)
