"""A pool of evaluation actors on Ray, with the reward they search with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rayjobs.comparison.actor import EvaluationActor
from rayjobs.comparison.tasks import Answer, DrawTask, SearchTask
from rayjobs.runtime import cluster

RETRIES = 10  # of one task, when its actor dies
Task = DrawTask | SearchTask


class Pool:
    """Actors that draw, search and judge; a task whose actor died is made again, with the same result.

    Args:
        actors: Their handles.
    """

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors

    def map(self, tasks: Sequence[Task], tell: Callable[[int, int], None] = lambda done, total: None) -> list[Answer]:
        """Have tasks done.

        Args:
            tasks: The tasks.
            tell: Told after each how many of how many are done.

        Returns:
            Answers, in the order of the tasks.
        """
        answers = []
        for answer in self.each(tasks):
            answers.append(answer)
            tell(len(answers), len(tasks))
        return answers

    def each(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        """Have tasks done, side by side.

        Args:
            tasks: The tasks.

        Yields:
            An answer a task, in their order.
        """
        from ray.util import ActorPool

        yield from ActorPool(list(self._actors)).map(
            lambda actor, task: (actor.draw if isinstance(task, DrawTask) else actor.search).remote(task), tasks
        )


@contextmanager
def pool(
    name: str, count: int, threads: int, address: str | None, reward: bool, timeout: float = 120.0,
    grader: dict[str, Any] | None = None,
) -> Iterator[Pool]:  # fmt: skip
    """Start actors, and the CLIP reward on Serve where they search; all end with the block.

    Args:
        name: Of the actors and the reward, as the dashboard shows them.
        count: Actors.
        threads: torch threads of each.
        address: Cluster to join.
        reward: Whether the actors search.
        timeout: Seconds for which the reward may stay down.
        grader: Options of the multimodal grader that the actors ask; `None` where nothing is graded.

    Yields:
        The pool.
    """
    import ray

    from reward_servers.client import ServeScore, start_reward_app, stop_reward_app
    from reward_servers.options import RewardAppOptions

    connection = cluster.join(address, f"sharpening-{name}", count * threads + int(reward))
    app, actors = f"reward-{name}", []
    try:
        resources = ray.cluster_resources()
        device = "cuda" if resources.get("GPU") else "cpu"
        gpus = min(1.0, resources.get("GPU", 0.0) / (count + 1))
        each = min(1.0, resources["CPU"] / (count * threads + 1)) * threads
        score = ServeScore(app, deadline_s=timeout) if reward else None
        actors = [
            ray.remote(EvaluationActor).options(
                name=f"sharpening/{name}/judge-{index}", num_cpus=each, num_gpus=gpus, max_restarts=RETRIES,
                max_task_retries=RETRIES, scheduling_strategy="SPREAD",
                runtime_env={"env_vars": cluster.thread_environment(threads, count * threads, resources["CPU"])},
            ).remote(f"sharpening/{name}/judge-{index}", device, threads, score, grader)
            for index in range(count)
        ]  # fmt: skip
        if reward:
            start_reward_app(RewardAppOptions(name=app, num_cpus=min(0.5, each), num_gpus=gpus), timeout_s=600.0)
        yield Pool(actors)
    finally:
        if not connection.owned:
            for actor in actors:
                ray.kill(actor)
            if reward:
                stop_reward_app(app)
        connection.close()
