"""Which Ray a job uses: a cluster to join, or one of its own, and where that one listens.

The same for every job that needs Ray. Imports neither torch nor Ray.
"""

import ipaddress
import os

from rayjobs import machine
from rayjobs.errors import OptionError
from rayjobs.options.declaring import Options, option

LOOPBACK = "127.0.0.1"


class RayOptions(Options):
    """A cluster to join, or the address of a Ray that the job starts itself."""

    ray_address: str | None = option(
        None, "ray", "address", "cluster to join", shown="RAY_ADDRESS, else a local Ray", resume=False
    )
    bind: str | None = option(
        None, "ray", "IP address", "address of this machine at which a local Ray is reached; with any but loopback, "
        "most of its ports are open on all of the machine's interfaces", shown=f"{LOOPBACK}, loopback alone",
        resume=False,
    )  # fmt: skip


def cluster_to_join(ray_address: str | None) -> str | None:
    """The cluster that a job joins.

    Args:
        ray_address: As `--ray_address` has it.

    Returns:
        Its address; `None` for a Ray of the job's own, which Ray itself calls `local`.
    """
    address = ray_address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address or None


def check_bind(options: RayOptions) -> None:
    """Refuse an address to listen on where a cluster is joined, or that Ray could not use.

    Args:
        options: A job's options.

    Raises:
        OptionError: If it cannot be used.
    """
    if options.bind is None:
        return
    if cluster_to_join(options.ray_address) is not None:
        named, undo = ("--ray_address", "leave out") if options.ray_address else ("RAY_ADDRESS", "unset")
        raise OptionError(
            "bind", f"{named} names a cluster to join, which has decided itself where it listens",
            f"leave out --bind, or {undo} {named} for a Ray of the job's own",
        )  # fmt: skip
    problem, remedy = _unusable(options.bind)
    if problem:
        raise OptionError("bind", problem, remedy)


def _unusable(bind: str) -> tuple[str, str]:
    """What is wrong with an address and what to do; empty where nothing is."""
    remedy = f"pass an address that `ip address` shows, or leave it out for {LOOPBACK}"
    try:
        address = ipaddress.ip_address(bind)
    except ValueError:
        return f"'{bind}' is no IP address", remedy
    if "%" in bind:
        return f"{bind} is an address of one link, under which Ray's processes do not find one another", remedy
    if address.is_unspecified:
        return f"{bind} stands for all addresses of a machine, and Ray's processes have to be told one", remedy
    if address.is_loopback and bind != LOOPBACK:  # Ray would not know it as loopback, and open its ports to everybody
        return f"Ray keeps to loopback under {LOOPBACK} alone, not under {bind}", f"leave it out for {LOOPBACK}"
    if not machine.has_address(bind):
        return f"this machine has no address {bind}", remedy
    return "", ""
