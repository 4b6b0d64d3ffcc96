"""Which nodes of a cluster a run's processes may be placed on, by labels; imports neither torch nor Ray."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rayjobs.errors import OptionError

if TYPE_CHECKING:
    from rayjobs.options import JobOptions
    from rayjobs.runtime.reservations import Reservations

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
LABEL = re.compile(rf"(?:[A-Za-z0-9.-]{{1,253}}/)?{_NAME}={_NAME}")  # as Kubernetes has them, and Ray
ROLLOUT, LEARNER = "rollout_nodes", "learner_nodes"


def check_label(label: str | None) -> str | None:
    """Refuse what is no label.

    Args:
        label: `key=value`, or `None`.

    Returns:
        The label.

    Raises:
        ValueError: If it is none.
    """
    if label is not None and not LABEL.fullmatch(label):
        raise ValueError("must be a label key=value, such as role=rollout")
    return label


def selector(label: str | None) -> dict[str, str] | None:
    """A label as Ray's `label_selector` takes it.

    Args:
        label: `key=value`; `None` for any node.

    Returns:
        The selector.
    """
    return None if label is None else dict([label.split("=")])


def spread() -> str | None:
    """How rollout actors are placed.

    Returns:
        Ray's strategy that keeps them apart; `None` within a placement group, whose bundles were made for them.
    """
    from ray.util import get_current_placement_group

    return None if get_current_placement_group() else "SPREAD"


def check_joins(options: "JobOptions") -> None:
    """Refuse labels where a run starts a Ray of its own, whose one node has none.

    Args:
        options: Of a run that joins no cluster.

    Raises:
        OptionError: If one is given.
    """
    for name in (ROLLOUT, LEARNER):
        if getattr(options, name) is not None:
            raise OptionError(
                name, "a run that starts a Ray of its own has one node, without labels",
                "join a cluster with --ray_address, or leave it out",
            )  # fmt: skip


def carrying(name: str, label: str, nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The nodes that carry a label.

    Args:
        name: The option that names the label.
        label: `key=value`.
        nodes: `ray.nodes()`.

    Returns:
        Those of the nodes that are alive and carry it.

    Raises:
        OptionError: If there is none.
    """
    key, value = label.split("=")
    alive = [node for node in nodes if node["Alive"]]
    found = [node for node in alive if node.get("Labels", {}).get(key) == value]
    if not found:
        there = sorted({f"{k}={v}" for node in alive for k, v in node.get("Labels", {}).items() if "ray.io/" not in k})
        raise OptionError(
            name, f"no node of the cluster carries {label} ({', '.join(there) or 'none has a label of yours'})",
            f"start nodes with `ray start --labels {label}`, or leave it out",
        )  # fmt: skip
    return found


def _together(nodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Resources of nodes by name, summed."""
    found: dict[str, float] = {}
    for node in nodes:
        for resource, amount in node["Resources"].items():
            found[resource] = found.get(resource, 0.0) + amount
    return found


def _cpus(nodes: Sequence[Mapping[str, Any]]) -> list[float]:
    """CPUs of each node that has any; a head is often given none."""
    return [cpus for node in nodes if node["Alive"] and (cpus := node["Resources"].get("CPU", 0.0))]


def reserve(
    options: "JobOptions", nodes: Sequence[Mapping[str, Any]], resources: dict[str, float], gpu: bool
) -> "Reservations":
    """Share CPUs and GPUs among the run's processes, within the nodes that each may be placed on.

    Args:
        options: The run's options.
        nodes: `ray.nodes()`.
        resources: `ray.cluster_resources()`.
        gpu: Whether learners and actors run on GPUs.

    Returns:
        The reservations.

    Raises:
        OptionError: If no node carries a label, or the learners outnumber the CPUs or GPUs of their nodes.
    """  # noqa: DOC502
    from rayjobs.runtime import reservations

    labels = {ROLLOUT: options.rollout_nodes, LEARNER: options.learner_nodes}
    groups = {name: carrying(name, label, nodes) if label else list(nodes) for name, label in labels.items()}
    have = {name: _together(groups[name]) if label else resources for name, label in labels.items()}
    cpus = {name: _cpus(group) for name, group in groups.items()}
    if options.rollout_nodes == options.learner_nodes:  # one group, or no labels at all
        return reservations.reserve(options, have[LEARNER], gpu, cpus[LEARNER])
    others = reservations.reserve(options.model_copy(update={"num_learners": 0}), have[ROLLOUT], gpu, cpus[ROLLOUT])
    alone = {"num_rollout_actors": 0, "reward_replicas": 0}
    learners = reservations.reserve(options.model_copy(update=alone), have[LEARNER], gpu, cpus[LEARNER])
    gpus = (others.gpus[0], learners.gpus[1], others.gpus[2])
    notes = [found.note for found in (others, learners) if found.part < 1]
    return replace(others, learner=learners.learner, gpus=gpus, note="; ".join(notes))
