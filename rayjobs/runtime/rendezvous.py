"""Where learner ranks meet: torch's store, at the address of its node's Ray instead of on every interface."""

import socket
import sys
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from rayjobs import machine


class Rendezvous(_TorchBackend):
    """Ray Train's start of the process group, with a store that listens at one address."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Make the process group.

        Args:
            worker_group: The ranks' processes.
            backend_config: How.
        """
        worker_group.execute_single(0, listen_at_one_address)
        super().on_start(worker_group, backend_config)


class RendezvousConfig(TorchConfig):
    """For `TorchTrainer`."""

    @property
    def backend_cls(self) -> type[Rendezvous]:
        """What starts the process group."""
        return Rendezvous


def listen_at_one_address() -> None:
    """Have the store of this process listen at the address under which the other ranks know it.

    torch's own listens on every interface, for which there is no option where the process group makes it; it asks
    nobody for a token. It takes over a socket that listens already, though.
    """
    import torch.distributed

    # The package's own attribute of this name is a function of the module.
    module: Any = sys.modules[torch.distributed.rendezvous.__module__]
    module.TCPStore = make_store


def make_store(host_name: str, port: int, *, is_master: bool = False, **more: Any) -> Any:
    """`torch.distributed.TCPStore`, whose server listens at `host_name` alone.

    Args:
        host_name: Address of the server's node.
        port: The server's port.
        is_master: Whether this process has the server.
        **more: As for `TCPStore`.

    Returns:
        The store.
    """
    from torch.distributed import TCPStore

    if is_master and machine.has_address(host_name):  # a node can be known by one that another machine translates
        family = socket.AF_INET6 if ":" in host_name else socket.AF_INET
        listening = socket.create_server((host_name, port), family=family)
        more["master_listen_fd"] = listening.detach()  # the store closes it
    return TCPStore(host_name, port, is_master=is_master, **more)
