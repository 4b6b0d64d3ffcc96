"""Where a Ray of a job's own listens: what may be asked for, in every job, and that torch's store keeps to it."""

import os
import socket
from datetime import timedelta

import pytest

from rayjobs import machine
from rayjobs.command_line import parse, read
from rayjobs.comparison.options import CompareOptions, TrialsOptions
from rayjobs.errors import OptionError
from rayjobs.options import options_class
from rayjobs.options.cluster import RayOptions, check_bind, cluster_to_join
from rayjobs.options.search import SearchJobOptions
from rayjobs.sweeping.options import SweepOptions
from sharpening.methods import METHODS
from tests.listening import exposed, listening

ABSENT = "203.0.113.5"  # of a net that is for documents alone


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster is named but by a test."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("bind", "says"),
    [
        (ABSENT, f"this machine has no address {ABSENT}; pass an address that `ip address` shows"),
        ("localhost", "'localhost' is no IP address; pass"),
        ("", "'' is no IP address; pass"),
        ("192.0.2.1:80", "'192.0.2.1:80' is no IP address; pass"),
        ("0.0.0.0", "0.0.0.0 stands for all addresses of a machine"),
        ("::", ":: stands for all addresses of a machine"),
        ("127.0.0.2", "under 127.0.0.1 alone, not under 127.0.0.2; leave it out for 127.0.0.1"),
        ("::1", "under 127.0.0.1 alone, not under ::1; leave it out"),
        ("fe80::1%lo", "fe80::1%lo is an address of one link"),
    ],
)
def test_an_address_that_ray_cannot_keep_to_is_refused(bind: str, says: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse(["--bind", bind])
    assert str(refused.value).startswith("--bind: ")
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "model", [SearchJobOptions, CompareOptions, TrialsOptions, SweepOptions, *map(options_class, METHODS)]
)
def test_every_job_that_starts_a_ray_can_be_told(model: type[RayOptions]) -> None:
    assert read(model, [], "job.py").bind is None
    assert read(model, ["--bind", "127.0.0.1"], "job.py").bind == "127.0.0.1"
    assert read(model, ["--bind", "127.0.0.1", "--ray_address", "local"], "job.py").ray_address == "local"
    with pytest.raises(OptionError, match=f"--bind: this machine has no address {ABSENT}; "):
        read(model, ["--bind", ABSENT], "job.py")


def test_a_cluster_that_is_joined_decides_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"--bind: --ray_address names a cluster to join.*leave out --ray_address"):
        parse(["--bind", "127.0.0.1", "--ray_address", "auto"])
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert cluster_to_join(None) == "192.0.2.1:6379"
    assert cluster_to_join("auto") == "auto"
    assert cluster_to_join("local") is None
    with pytest.raises(OptionError, match=r"--bind: RAY_ADDRESS names a cluster to join.*or unset RAY_ADDRESS"):
        parse(["--bind", "127.0.0.1"])
    check_bind(RayOptions())
    check_bind(RayOptions(bind="127.0.0.1", ray_address="local"))


def test_ray_takes_loopback_as_it_is_where_it_would_exchange_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services, worker

    from rayjobs.runtime import cluster

    monkeypatch.setattr(worker, "_global_node", None)
    before = services.resolve_ip_for_localhost("127.0.0.1")  # the outward address, where there is one
    for address in ("127.0.0.1", "198.51.100.7"):
        with cluster.listening_at(address) as own:
            assert services.resolve_ip_for_localhost(own) == address
            assert address != "127.0.0.1" or services.get_node_ip_address() == address
    assert services.resolve_ip_for_localhost("127.0.0.1") == before


def test_the_store_of_the_learners_listens_at_one_address() -> None:
    from rayjobs.runtime.rendezvous import make_store

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    before = listening(os.getpid())
    told = {"world_size": 2, "wait_for_workers": False}
    server = make_store("127.0.0.1", port, is_master=True, timeout=timedelta(seconds=30), **told)
    assert exposed(listening(os.getpid())) == exposed(before)
    client = make_store("127.0.0.1", port, **told)
    client.set("rank", "1")
    assert server.get("rank") == b"1"


def test_which_addresses_are_this_machines_own() -> None:
    assert machine.has_address("127.0.0.1")
    assert not machine.has_address(ABSENT)
    assert not machine.has_address("2001:db8::5")
