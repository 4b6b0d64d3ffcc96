"""Submits a run to the Ray of a Slurm job as soon as every node has joined, and follows it to its end.

    python submit.py --dashboard http://127.0.0.1:8265 --nodes 3 --patience 600 --name first -- python rayjobs/rlhf.py …

The run's log is written here and its exit code is this program's. SIGTERM and SIGINT stop the run in good order; how
long it may take for that says `RAY_JOB_STOP_WAIT_TIME_S`, which the head reads.
"""

import argparse
import asyncio
import shlex
import signal
import sys
from collections.abc import Callable
from typing import Any

from ray.job_submission import JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

POLL_S = 2.0  # seconds between two tries


class NotReady(Exception):
    """Something is not there yet, which may change."""


def patiently(attempt: Callable[[], Any], patience_s: float) -> Any:
    """Try until it works; what Ray refuses while it starts is tried again.

    Args:
        attempt: What to try.
        patience_s: Seconds until it is given up.

    Returns:
        What the attempt gave.

    Raises:
        NotReady: If it never worked; says why the last attempt did not.
    """
    starting = retry_if_exception_type((NotReady, ConnectionError, RuntimeError, RayStateApiException))
    try:
        return Retrying(stop=stop_after_delay(patience_s), wait=wait_fixed(POLL_S), retry=starting)(attempt)
    except RetryError as error:
        cause = error.last_attempt.exception()
        raise NotReady(f"gave up after {patience_s:g} s: {type(cause).__name__}: {cause}") from cause


def check_nodes(dashboard: str, wanted: int) -> None:
    """Count the nodes.

    Args:
        dashboard: Address of the dashboard.
        wanted: How many there should be.

    Raises:
        NotReady: If there are fewer.
    """
    found = len(list_nodes(dashboard, filters=[("state", "=", "ALIVE")], limit=10_000, raise_on_missing_output=False))
    if found < wanted:
        raise NotReady(f"{found} of {wanted} nodes have joined Ray")


def submit(client: JobSubmissionClient, name: str, command: list[str]) -> None:
    """Submit the run, once: an answer that was lost does not make it run twice.

    Args:
        client: Of the cluster.
        name: The submission's name.
        command: What to run.
    """
    if name not in {job.submission_id for job in client.list_jobs()}:
        client.submit_job(entrypoint=shlex.join(command), submission_id=name)


def follow(client: JobSubmissionClient, name: str) -> int:
    """Copy the run's log until it ends.

    Args:
        client: Of the cluster.
        name: The submission's name.

    Returns:
        The run's exit code; 1 where it has none, because Ray could not run it or killed it.
    """

    async def copy() -> None:
        async for lines in client.tail_job_logs(name):
            print(lines, end="", flush=True)

    while not client.get_job_status(name).is_terminal():  # the log may break off before the run does
        asyncio.run(copy())
    job = client.get_job_info(name)
    print(f"{name}: {job.status.value}{f' ({job.message})' if job.message else ''}", flush=True)
    return 1 if job.driver_exit_code is None else job.driver_exit_code


def main() -> int:
    """Submit and follow.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dashboard", required=True, help="address of the dashboard")
    parser.add_argument("--nodes", type=int, required=True, help="nodes that must have joined")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds for Ray to start")
    parser.add_argument("--name", required=True, help="name of the submission")
    parser.add_argument("command", nargs="+", help="what to run")
    options = parser.parse_args()
    try:
        patiently(lambda: check_nodes(options.dashboard, options.nodes), options.patience)
        client = patiently(lambda: JobSubmissionClient(options.dashboard), options.patience)
        patiently(lambda: submit(client, options.name, options.command), options.patience)
    except NotReady as error:
        print(f"submit: {error}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: client.stop_job(options.name))
    return follow(client, options.name)


if __name__ == "__main__":
    sys.exit(main())
