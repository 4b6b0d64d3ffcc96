"""A pool of evaluation actors on Ray, with the reward they search with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rayjobs.comparison.actor import EvaluationActor
from rayjobs.comparison.tasks import Answer, DrawTask, ScoreTask, SearchTask
from rayjobs.forking.beside import runtime_env
from rayjobs.options.cluster import RayOptions
from rayjobs.rewards import RewardPlan
from rayjobs.runtime import cluster, reservations
from rayjobs.runtime.rewards import app_names, app_options, serve_rewards, served
from sharpening.rewards.mix import Mix

RETRIES = 10  # of one task, when its actor dies
Task = DrawTask | SearchTask | ScoreTask
METHODS = {DrawTask: "draw", SearchTask: "search", ScoreTask: "score"}


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
            lambda actor, task: getattr(actor, METHODS[type(task)]).remote(task), tasks
        )


@contextmanager
def pool(
    name: str, count: int, threads: int, ray_options: RayOptions, rewards: Sequence[RewardPlan] = (),
    mix: Mix | None = None, timeout: float = 120.0, grader: dict[str, Any] | None = None,
) -> Iterator[Pool]:  # fmt: skip
    """Start actors, and the rewards on Serve where they search; all end with the block.

    Args:
        name: Of the actors and the reward, as the dashboard shows them.
        count: Actors.
        threads: torch threads of each.
        ray_options: Cluster to join, or where a Ray of the pool's own listens.
        rewards: What the actors search with; none where they do not search.
        mix: How several rewards become one; `None` where there is one.
        timeout: Seconds for which the reward may stay down.
        grader: Options of the multimodal grader that the actors ask; `None` where nothing is graded.

    Yields:
        The pool.
    """
    import ray

    from reward_servers.applications import stop_reward_app

    asked = sum(plan.replicas * plan.threads for plan in rewards)
    connection = cluster.join(ray_options, f"sharpening-{name}", count * threads + asked)
    apps, actors = app_names(f"reward-{name}", rewards, mix), []
    try:
        resources = ray.cluster_resources()
        device = "cuda" if resources.get("GPU") else "cpu"
        gpus = min(1.0, resources.get("GPU", 0.0) / (count + max(1, sum(plan.replicas for plan in rewards))))
        part = min(1.0, resources["CPU"] / (count * threads + max(1, asked)))
        each = part * threads
        score = served(apps, rewards, mix, timeout)[0] if rewards else None
        actors = [
            ray.remote(EvaluationActor).options(
                name=f"sharpening/{name}/judge-{index}", num_cpus=each, num_gpus=gpus, max_restarts=RETRIES,
                max_task_retries=RETRIES, scheduling_strategy="SPREAD",
                runtime_env=runtime_env(reservations.thread_environment(threads, count * threads, resources["CPU"])),
            ).remote(f"sharpening/{name}/judge-{index}", device, threads, score, grader)
            for index in range(count)
        ]  # fmt: skip
        if rewards:
            serve_rewards([
                app_options(plan, apps[plan.name], min(0.5, part) * plan.threads, gpus) for plan in rewards
            ])  # fmt: skip
        yield Pool(actors)
    finally:
        if not connection.owned:
            for actor in actors:
                ray.kill(actor)
            for app in apps.values():
                stop_reward_app(app)
        connection.close()
