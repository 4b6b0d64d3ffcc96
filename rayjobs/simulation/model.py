"""The simulated run: actors, replicas, learner group and weights, in the order that the job's own hand-over decides.

Which task runs when, with which version, and when an update is complete say the very classes that the coordinator asks
(`HandOver`, `Versions`); only time is simulated. What it leaves out: failures, dropped prompts, looks at held-out
prompts, starting and ending.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from rayjobs.runtime.experience import RolloutTask, Summary
from rayjobs.runtime.hand_over import HandOver
from rayjobs.runtime.weights import Versions
from rayjobs.simulation.events import Clock, Line, Station, Then
from rayjobs.simulation.routing import MEMORY_S, Handle
from rayjobs.simulation.stages import Layout, Stages, scaled

ACTOR_STATES = ("compute", "reward", "queue", "weights", "hand_over")
WORK = ("compute", "reward", "hand_over")  # what more actors would share; the rest is waiting for others
LEARNER_STATES = ("learn", "publish", "checkpoint")


@dataclass(frozen=True)
class Outcome:
    """What a simulated run comes to, once it has settled.

    Attributes:
        layout: How it was laid out.
        seconds_per_update: Mean seconds between two updates.
        images_per_second: Images scored a second.
        actor: Shares of an actor's time: compute, reward, queue (before the reward or the coordinator), weights
            (waiting for them and taking them over), hand_over; the rest is idle.
        learner: Shares of the learner group's time: learn, publish, checkpoint; the rest it waits for experience.
        busy: Share of time in which each of them works: rollout, reward, learner, network (the head's line),
            coordinator. The one nearest to 1 limits the run.
        reward_queue: Tasks that wait for the reward, on average.
        staleness: Updates that rollouts lagged behind, on average.
    """

    layout: Layout
    seconds_per_update: float
    images_per_second: float
    actor: dict[str, float]
    learner: dict[str, float]
    busy: dict[str, float]
    reward_queue: float
    staleness: float

    @property
    def actor_idle(self) -> float:
        """Share of an actor's time in which it has no task."""
        return max(0.0, 1 - sum(self.actor.values()))

    @property
    def learner_wait(self) -> float:
        """Share of the learner group's time in which it waits for experience."""
        return max(0.0, 1 - sum(self.learner.values()))

    @property
    def bottleneck(self) -> str:
        """What limits the run: the part that works most of the time."""
        return max(self.busy, key=lambda part: self.busy[part])


@dataclass
class _Actor:
    """One rollout actor."""

    node: int
    handle: Handle
    version: int = 0
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ACTOR_STATES, 0.0))


def simulate(stages: Stages, layout: Layout, updates: int = 40, seed: int = 0) -> Outcome:
    """Simulate a run.

    Args:
        stages: Seconds and bytes, as they were measured.
        layout: How it is laid out.
        updates: Updates, of which those before the pipeline is full do not count.
        seed: Of the tasks' spread.

    Returns:
        What it comes to.
    """
    return _Run(scaled(stages, layout), layout, updates, seed).outcome()


class _Run:
    """The state of a simulated run."""

    def __init__(self, stages: Stages, layout: Layout, updates: int, seed: int) -> None:
        self._stages, self._layout, self._updates = stages, layout, updates
        self._random = np.random.default_rng(seed)
        self._clock = Clock()
        self._hand_over = HandOver(
            lambda update, slot: slot, layout.prompts_per_update, layout.rollout_batch_size, layout.staleness, updates,
            max_failed_share=0.5,
        )  # fmt: skip
        self._versions = Versions(layout.staleness)
        self._replicas = [Station(self._clock, layout.reward_concurrency) for _ in range(layout.reward_replicas)]
        self._coordinator = Station(self._clock, 1)
        self._head = Line(self._clock, layout.bandwidth)
        per_node = layout.actors_per_node or layout.actors
        memory = MEMORY_S if layout.routing == "remembered" else 0.0
        self._actors = [
            _Actor(index // per_node, Handle(self._clock, self._replicas, self._random, memory))
            for index in range(layout.actors)
        ]
        self._idle = deque(self._actors)
        self._arriving: dict[tuple[int, int], list[Then] | None] = {}  # (node, version): who waits; None: it is there
        self._learner = dict.fromkeys(LEARNER_STATES, 0.0)
        self._learning = False
        self._made = 0
        self._lags: list[int] = []
        self._finished: list[float] = []
        self._settled = min(updates - 2, layout.staleness + 2)
        self._before: dict[str, float] = {}

    def outcome(self) -> Outcome:
        """Let the run happen, and sum it up."""
        self._versions.publish(0, None)
        self._hand_over.begin(0, 1)
        self._wake()
        self._clock.run(lambda: self._made == self._updates)
        counted = self._updates - self._settled
        seconds = self._finished[-1] - self._finished[self._settled - 1]
        now = self._totals()
        share = {name: (now[name] - self._before[name]) / seconds for name in now}
        layout, stages = self._layout, self._stages
        actor = {name: share[f"actor_{name}"] / layout.actors for name in ACTOR_STATES}
        learner = {name: share[f"learner_{name}"] for name in LEARNER_STATES}
        servers = layout.reward_replicas * layout.reward_concurrency
        return Outcome(
            layout=layout,
            seconds_per_update=seconds / counted,
            images_per_second=stages.images_per_prompt * layout.prompts_per_update * counted / seconds,
            actor=actor,
            learner=learner,
            busy={
                "rollout": sum(actor[name] for name in WORK), "reward": share["reward"] / servers,
                "learner": sum(learner.values()), "network": share["network"], "coordinator": share["coordinator"],
            },
            reward_queue=share["waited"],
            staleness=float(np.mean(self._lags[self._settled :])),
        )  # fmt: skip

    def _totals(self) -> dict[str, float]:
        """Everything that is summed up, so far."""
        actors = {f"actor_{name}": sum(actor.spent[name] for actor in self._actors) for name in ACTOR_STATES}
        learner = {f"learner_{name}": seconds for name, seconds in self._learner.items()}
        return actors | learner | {
            "reward": sum(replica.busy for replica in self._replicas),
            "waited": sum(replica.waited for replica in self._replicas), "coordinator": self._coordinator.busy,
            "network": self._head.busy,
        }  # fmt: skip

    # -- rollout actors ------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Give tasks to idle actors, those that have been idle longest first."""
        while self._idle:
            task = self._hand_over.take(self._versions.__contains__)
            if task is None:
                return
            self._send(self._idle.popleft(), task)

    def _send(self, actor: _Actor, task: RolloutTask) -> None:
        asked = self._clock.now

        def sent(waited: float) -> None:
            actor.spent["queue"] += waited
            actor.spent["hand_over"] += self._clock.now - asked - waited
            self._clock.after(self._stages.hand_over, there)

        def there() -> None:
            actor.spent["hand_over"] += self._stages.hand_over
            self._take_weights(actor, task, partial(self._compute, actor, task))

        self._coordinator.serve(self._stages.coordinator, sent)

    def _take_weights(self, actor: _Actor, task: RolloutTask, then: Then) -> None:
        """Hold the weights of the task's version; every actor has version 0."""
        if task.version == actor.version:
            then()
            return
        asked = self._clock.now
        actor.version = task.version

        def loaded() -> None:
            actor.spent["weights"] += self._clock.now - asked
            then()

        self._fetch(actor.node, task.version, lambda: self._clock.after(self._stages.load, loaded))

    def _fetch(self, node: int, version: int, then: Then) -> None:
        """Bring a version to a node, once."""
        key = (node, version)
        if self._layout.nodes == 0 or (key in self._arriving and self._arriving[key] is None):
            then()
            return
        waiting = self._arriving.get(key)
        if waiting is not None:
            waiting.append(then)
            return
        self._arriving[key] = [then]

        def arrived() -> None:
            waiting, self._arriving[key] = self._arriving[key] or [], None
            for go in waiting:
                go()

        if self._layout.tree:
            hops = math.ceil(math.log2(self._layout.nodes + 1))
            self._clock.after(hops * self._stages.weights_bytes / self._layout.bandwidth, arrived)
        else:
            self._head.send(self._stages.weights_bytes, arrived)

    def _compute(self, actor: _Actor, task: RolloutTask) -> None:
        """Work on a task: up to the reward, the reward, and what follows it."""
        stages, share = self._stages, len(task.slots) / self._layout.rollout_batch_size
        factor = share * self._factor()
        before, after, scoring = stages.before_reward * factor, stages.after_reward * factor, stages.reward * share

        def drawn() -> None:
            actor.spent["compute"] += before
            place = actor.handle.choose()
            self._replicas[place].serve(scoring, partial(scored, place))
            actor.handle.sent(place)

        def scored(place: int, waited: float) -> None:
            actor.handle.done(place)
            actor.spent["queue"] += waited
            actor.spent["reward"] += scoring
            self._clock.after(after, done)

        def done() -> None:
            actor.spent["compute"] += after
            self._deliver(actor, task)

        self._clock.after(before, drawn)

    def _factor(self) -> float:
        """How much longer than the mean a task takes: gamma-distributed."""
        spread = self._stages.spread
        return float(self._random.gamma(1 / spread**2, spread**2)) if spread else 1.0

    def _deliver(self, actor: _Actor, task: RolloutTask) -> None:
        summary = Summary(
            kept=len(task.slots), groups=len(task.slots), dropped=[], path_rewards=np.zeros((0, 0)), statistics={},
            seconds={}, nfe={}, images_scored=0,
        )  # fmt: skip
        self._hand_over.deliver(task, task.version, summary)
        self._idle.append(actor)
        self._learn()
        self._wake()

    # -- the learner group ---------------------------------------------------------------------------------------

    def _learn(self) -> None:
        """Begin the next update once its experience is complete."""
        if self._learning or self._made == self._updates:
            return
        shares = self._hand_over.shares(self._made, 0, 1)
        if shares is None:
            return
        self._learning = True
        self._lags.append(self._made - min(share.experience for share in shares))
        self._spend("learn", self._stages.learn, self._publish)

    def _publish(self) -> None:
        hop = self._stages.weights_bytes / self._layout.bandwidth if self._layout.nodes else 0.0
        self._spend("publish", self._stages.publish + self._stages.finish + hop, self._finish)

    def _finish(self) -> None:
        self._versions.publish(self._made + 1, None)
        self._hand_over.consume(self._made)
        self._made += 1
        self._finished.append(self._clock.now)
        if self._made == self._settled:
            self._before = self._totals()
        self._wake()
        due = self._made % self._layout.checkpointing_steps == 0
        self._spend("checkpoint", self._stages.checkpoint if due else 0.0, self._rest)

    def _rest(self) -> None:
        self._learning = False
        self._learn()

    def _spend(self, state: str, seconds: float, then: Callable[[], None]) -> None:
        def spent() -> None:
            self._learner[state] += seconds
            then()

        self._clock.after(seconds, spent)
