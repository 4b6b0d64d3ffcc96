"""Measures a reward: a scorer in a process, the same behind a Serve handle, and behind the HTTP gateway."""

from __future__ import annotations

import asyncio
import socket
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
import ray

if TYPE_CHECKING:
    from rayjobs.bench_rewards import BenchRewardsOptions

POOL = 512
"""Different images, and as many prompts; prompts are embedded once, as those of a run are."""

APP, GATEWAY = "bench-reward", "bench-rewards"


@dataclass(frozen=True)
class Pictures:
    """What is scored: pictures of the embedded world and their captions.

    Attributes:
        images: uint8 `[POOL, 64, 64, 3]`.
        prompts: one an image.
    """

    images: np.ndarray
    prompts: list[str]

    def take(self, number: int, count: int) -> tuple[np.ndarray, list[str]]:
        """The images and prompts of a caller's next call.

        Args:
            number: of the call.
            count: images.

        Returns:
            `count` of them.
        """
        places = (number * count + np.arange(count)) % POOL
        return self.images[places], [self.prompts[i] for i in places]


def draw_pictures() -> Pictures:
    """Draw them, always the same."""
    from sharpening.shapes.benchmark import caption_for, training_scene
    from sharpening.shapes.render import render

    rng = np.random.default_rng(0)
    scenes = [training_scene(rng) for _ in range(POOL)]
    captions = [caption_for(scene, rng, set())[0] for scene in scenes]
    return Pictures(np.stack([render(scene) for scene in scenes]), captions)


class InProcess:
    """The scorer in a process that does nothing else, as an actor so that it takes turns with the others."""

    def __init__(self, reward: str, scorer_options: dict[str, Any], threads: int, pictures: Pictures) -> None:
        """Load it and embed all prompts.

        Args:
            reward: name of the reward.
            scorer_options: keyword arguments of its class.
            threads: torch threads.
            pictures: what is scored.
        """
        from reward_servers.deployment import load_scorer

        self._score = load_scorer(reward, scorer_options, threads)
        self._pictures = pictures
        self._score(pictures.images, pictures.prompts)

    def measure(self, images: int, seconds: float) -> dict[str, Any]:
        """Score again and again.

        Args:
            images: of a call: what all callers ask about at a time.
            seconds: wall time.

        Returns:
            `images_per_s`, `cpu_ms` an image, and `latency_s` of calls.
        """
        latencies: list[float] = []
        began, cpu = time.perf_counter(), time.process_time()
        while not latencies or time.perf_counter() - began < seconds:
            at = time.perf_counter()
            self._score(*self._pictures.take(len(latencies), images))
            latencies.append(time.perf_counter() - at)
        done = images * len(latencies)
        wall, used = time.perf_counter() - began, time.process_time() - cpu
        return {"images_per_s": done / wall, "cpu_ms": 1e3 * used / done, "latency_s": latencies}


class Server:
    """The reward on Serve, and the gateway in front of it, in the cluster that this process is connected to."""

    def __init__(self, options: BenchRewardsOptions) -> None:
        """Start both.

        Args:
            options: what is served.
        """
        from reward_servers.applications import start_gateway, start_reward_app
        from reward_servers.gateway_options import GatewayOptions
        from reward_servers.options import RewardAppOptions

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.options = RewardAppOptions(
            name=APP, reward=options.reward, model=options.reward_model, batch_size=options.batch_size,
            max_batch_images=options.max_batch_images, num_replicas=options.reward_replicas,
            num_threads=options.reward_threads, num_cpus=0.1,
        )  # fmt: skip
        start_gateway(GatewayOptions(name=GATEWAY, applications={options.reward: APP}), port=port, timeout_s=600.0)
        self.handle = start_reward_app(self.options, timeout_s=600.0)

    def statistics(self) -> dict[str, Any]:
        """What a replica did so far; with several, one of them."""
        return self.handle.statistics.remote().result(timeout_s=60)

    def by_handle(self, pictures: Pictures) -> Callable[[int, int], Awaitable[None]]:
        """A call through the handle, gathered as the router does it, images by reference.

        Args:
            pictures: what is scored.

        Returns:
            A coroutine function of the call's number and its images.
        """
        from reward_servers.client import sendable
        from reward_servers.gathering import Gathering

        async def ask(images: np.ndarray, prompts: list[str]) -> Any:
            return await self.handle.score.remote(sendable(images), prompts)

        gathering = Gathering(APP, ask, lambda error: False, self.options.max_batch_images)

        async def call(number: int, count: int) -> None:
            scores = await gathering.score(*pictures.take(number, count))
            assert len(scores.values) == count
            assert not scores.failures

        return call

    def by_http(self, pictures: Pictures, client: aiohttp.ClientSession) -> Callable[[int, int], Awaitable[None]]:
        """A call over HTTP; images were encoded before.

        Args:
            pictures: what is scored.
            client: to send with.

        Returns:
            A coroutine function of the call's number and its images.
        """
        from reward_servers.images import png

        files = [b64encode(png(image)).decode() for image in pictures.images]

        async def call(number: int, count: int) -> None:
            places = [(number * count + i) % POOL for i in range(count)]
            items = [{"image": files[i], "prompt": pictures.prompts[i]} for i in places]
            async with client.post(f"{self.url}/v1/score", json={"items": items}) as reply:
                reply.raise_for_status()
                (results,) = (await reply.json())["results"].values()
            assert all(result["failure"] is None for result in results)

        return call


async def load(
    call: Callable[[int, int], Awaitable[None]], callers: int, images: int, seconds: float
) -> dict[str, Any]:
    """Have callers call, each again as soon as it has its answer.

    Args:
        call: coroutine function of the call's number and its images.
        callers: how many at a time.
        images: of a call.
        seconds: wall time; calls that are under way at its end are finished and count.

    Returns:
        `images_per_s`, `cpu_ms` of this process an image, and `latency_s` of calls.
    """
    latencies: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()

    async def caller(first: int) -> None:
        number = first
        while number == first or time.perf_counter() - began < seconds:
            at = time.perf_counter()
            await call(number, images)
            latencies.append(time.perf_counter() - at)
            number += callers

    await asyncio.gather(*(caller(first) for first in range(callers)))
    done = images * len(latencies)
    wall, used = time.perf_counter() - began, time.process_time() - cpu
    return {"images_per_s": done / wall, "cpu_ms": 1e3 * used / done, "latency_s": latencies}


def measure(options: BenchRewardsOptions, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure everything in a Ray of our own.

    Args:
        options: settled options.
        say: where progress goes.

    Returns:
        A row a measurement: `way` ("process", "handle", "http"), `callers`, `images_per_call`, `turn`, what `load`
        found, and for served ones `batch_images` (batches by their number of images) and `server_cpu_ms` an image.
    """
    from rayjobs.options.cluster import RayOptions
    from rayjobs.runtime import cluster

    connection = cluster.join(RayOptions(), "bench-rewards", 2 * options.reward_threads + 1)
    try:
        say("starting the reward, the gateway and the process")
        server = Server(options)
        pictures = draw_pictures()
        threads = options.reward_threads
        variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        actor = ray.remote(InProcess).options(num_cpus=0.1, runtime_env={"env_vars": variables})
        process = actor.remote(options.reward, server.options.scorer_options(), threads, pictures)
        return asyncio.run(_by_turns(options, server, process, pictures, say))
    finally:
        ray.serve.shutdown()
        connection.close()


async def _by_turns(
    options: BenchRewardsOptions, server: Server, process: Any, pictures: Pictures, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    assert options.seconds is not None
    assert options.turns is not None
    rows = []
    # aiohttp, which Ray brings along: httpx spends milliseconds a request on a pool of 256 connections.
    connections = aiohttp.TCPConnector(limit=max(options.callers))
    async with aiohttp.ClientSession(connector=connections, timeout=aiohttp.ClientTimeout(300.0)) as client:
        ways = {"handle": server.by_handle(pictures), "http": server.by_http(pictures, client)}
        for call in ways.values():
            await call(0, POOL // 4)  # warm: connections, and the replica's prompts
        await load(ways["handle"], 4, POOL // 4, 0.0)
        for turn in range(options.turns):
            for images in options.images_per_call:
                for callers in options.callers:
                    say(f"turn {turn + 1}/{options.turns}: {callers} callers, {images} images each")
                    about = {"callers": callers, "images_per_call": images, "turn": turn}
                    alone = await process.measure.remote(callers * images, options.seconds)
                    rows.append({"way": "process", **about, **alone})
                    for way, call in ways.items():
                        before = await asyncio.to_thread(server.statistics)
                        found = await load(call, callers, images, options.seconds)
                        after = await asyncio.to_thread(server.statistics)
                        rows.append({"way": way, **about, **found, **_served(before, after)})
    return rows


def _served(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What a replica did between two looks, if both were at the same one."""
    if before["pid"] != after["pid"]:
        return {}
    batches = {size: n - before["batch_images"].get(size, 0) for size, n in after["batch_images"].items()}
    images = after["images"] - before["images"]
    return {
        "batch_images": {size: n for size, n in sorted(batches.items()) if n},
        "server_cpu_ms": 1e3 * (after["cpu_seconds"] - before["cpu_seconds"]) / max(1, images),
    }
