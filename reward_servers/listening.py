"""Where a replica listens: on loopback alone, where its node's Ray does."""

from __future__ import annotations

import sys
from typing import Any

REPLICA = "ray.serve._private.replica"


def keep_to_loopback() -> None:
    """Have the gRPC server that Serve gives this replica listen on loopback, where its node is known by that.

    Serve starts one in every replica, for calls between deployments (ours do not use it), on every interface, and has
    no setting for its address. It does so after the deployment's `__init__`, which is where this is called.
    """
    replica: Any = sys.modules.get(REPLICA)
    if replica is not None:  # a deployment made by hand has no replica around it
        replica.add_port_to_grpc_server = add_port


def add_port(server: Any, address: str) -> int:
    """Have a gRPC server listen.

    Args:
        server: The server.
        address: What Serve asks for, `[::]:0`: any port of every interface.

    Returns:
        The port.
    """
    import ray
    from ray._common.network_utils import build_address, is_localhost
    from ray._common.tls_utils import add_port_to_grpc_server

    node = ray.util.get_node_ip_address()
    port = address.rpartition(":")[2]
    return int(add_port_to_grpc_server(server, build_address(node, port) if is_localhost(node) else address))
