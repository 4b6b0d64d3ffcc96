"""What a process and those beneath it listen on, as the operating system tells it."""

import contextlib
import ipaddress
import random
import socket

import psutil


def listening(pid: int) -> dict[str, set[str]]:
    """Addresses that processes wait at for others, over TCP or UDP.

    Args:
        pid: of the topmost process.

    Returns:
        The addresses, by the titles of the processes that have any.
    """
    top = psutil.Process(pid)
    found: dict[str, set[str]] = {}
    for process in [top, *top.children(recursive=True)]:
        try:
            title = _title(process.cmdline())
            for one in process.net_connections("inet"):
                waits = one.status == psutil.CONN_LISTEN or (one.type == socket.SOCK_DGRAM and not one.raddr)
                if waits and one.laddr:
                    found.setdefault(title, set()).add(one.laddr.ip)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def exposed(found: dict[str, set[str]]) -> dict[str, set[str]]:
    """Those of the addresses that are not loopback: what another machine may reach."""
    outward = {title: {ip for ip in addresses if not _is_loopback(ip)} for title, addresses in found.items()}
    return {title: addresses for title, addresses in outward.items() if addresses}


def silent(found: dict[str, set[str]], *names: str) -> list[str]:
    """Those of the names that no process which listens has in its title: a list that lacks them says nothing."""
    return [name for name in names if not any(name in title for title in found)]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has, and that nobody is given who asks for just any.

    Between this and its use other processes open sockets by the hundred, a Ray above all. The system hands out ports
    from 32768 on (Linux) or 49152 on (elsewhere), and `ray start` uses those below 20000.
    """
    while True:
        port = random.SystemRandom().randrange(20000, 32768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def outward_address() -> str:
    """An IPv4 address of this machine that others may reach; its loopback address where it has no other."""
    found = [one.address for of in psutil.net_if_addrs().values() for one in of if one.family == socket.AF_INET]
    return next((address for address in found if not _is_loopback(address)), "127.0.0.1")


def _is_loopback(address: str) -> bool:
    """127.0.0.1, ::1, and the former as a socket of both kinds says it: ::ffff:127.0.0.1."""
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def _title(words: list[str]) -> str:
    """`ray::RolloutActor`, `gcs_server`, `monitor.py`: what a process is, without its folder and its arguments.

    Ray puts the name of an actor before its class, and what it does at the moment behind it.
    """
    if words and words[0].startswith("ray::"):
        return words[0].strip()
    script = next((word for word in words[1:] if word.endswith(".py")), words[0] if words else "?")
    return script.rpartition("/")[2]
