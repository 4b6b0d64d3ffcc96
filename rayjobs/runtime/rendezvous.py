"""Where learner ranks meet: torch's store, at the address of its node's Ray instead of on every interface.

Ray Train's own `TorchConfig` has torch open the store, which asks nobody for a token, on all interfaces and at a port
that may be taken by then; and it imports torch in the driver and in Ray Train's controller, which have no use for it.
"""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig

from rayjobs import machine
from sharpening.startup import loading

PATIENCE = timedelta(minutes=30)  # of a collective operation, as in Ray Train and in torch
GOODBYE_S = 30.0

_store: Any = None  # of the rank that opened it: it must be there before the others are told where


class Rendezvous(Backend):
    """Ray Train's start of a process group."""

    share_cuda_visible_devices = True  # NCCL needs to see the GPUs of its node's other ranks

    def on_start(self, worker_group: Any, backend_config: "RendezvousConfig") -> None:
        """Make the process group.

        Args:
            worker_group: The ranks' processes.
            backend_config: How.
        """
        place = worker_group.execute_single(0, open_store)
        ranks = range(len(worker_group))
        told = (len(ranks), place, backend_config.backend)
        ray.get([worker_group.execute_single_async(rank, meet, rank, *told) for rank in ranks])

    def on_shutdown(self, worker_group: Any, backend_config: "RendezvousConfig") -> None:
        """End the process group; a rank that hangs is not waited for.

        Args:
            worker_group: The ranks' processes.
            backend_config: How it was made.
        """
        leaving = worker_group.execute_async(part)
        ray.wait(leaving, num_returns=len(leaving), timeout=GOODBYE_S)


@dataclass
class RendezvousConfig(BackendConfig):
    """For Ray Train's `DataParallelTrainer`.

    Attributes:
        backend: `gloo` or `nccl`.
    """

    backend: str

    @property
    def backend_cls(self) -> type[Rendezvous]:
        """What starts the process group."""
        return Rendezvous

    @property
    def framework(self) -> Any:
        """What Ray's dashboard calls it."""
        from ray.train.v2._internal.util import TrainingFramework

        return TrainingFramework.TORCH


@loading()
def open_store() -> tuple[str, int]:
    """Open the store, in the process of the first rank.

    Returns:
        Its address, as Ray knows the node, and its port.
    """
    global _store  # noqa: PLW0603
    host = ray.util.get_node_ip_address()
    _store = make_store(host, 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    return host, _store.port


@loading()
def meet(rank: int, ranks: int, place: tuple[str, int], backend: str) -> None:
    """Join the process group, in the process of a rank.

    Args:
        rank: Its number.
        ranks: How many there are.
        place: The store's address and port.
        backend: `gloo` or `nccl`.
    """
    import ray.train
    import torch.distributed

    context = ray.train.get_context()
    # torchrun's names, which DeepSpeed asks for.
    os.environ |= {
        "MASTER_ADDR": place[0], "MASTER_PORT": str(place[1]), "RANK": str(rank), "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(context.get_local_rank()), "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }  # fmt: skip
    store = make_store(*place, timeout=PATIENCE) if _store is None else _store
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=PATIENCE)


def part() -> None:
    """Leave the process group, in the process of a rank."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def make_store(host_name: str, port: int, *, is_master: bool = False, **more: Any) -> Any:
    """`torch.distributed.TCPStore`, whose server listens at `host_name` alone.

    Args:
        host_name: Address of the server's node.
        port: The server's port; 0 for one that is free.
        is_master: Whether this process has the server.
        **more: As for `TCPStore`.

    Returns:
        The store.
    """
    from torch.distributed import TCPStore

    if is_master and machine.has_address(host_name):  # a node can be known by one that another machine translates
        family = socket.AF_INET6 if ":" in host_name else socket.AF_INET
        listening = socket.create_server((host_name, port), family=family)
        port = listening.getsockname()[1]
        more["master_listen_fd"] = listening.detach()  # the store closes it
    return TCPStore(host_name, port, is_master=is_master, **more)
