"""What each reward of a job is served with: options and `--reward_config`, put together and checked.

Imports neither torch nor Ray.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from rayjobs.command_line import read_config
from rayjobs.errors import OptionError
from rayjobs.options.declaring import EMBEDDED, SECRET_URL
from rayjobs.options.reward import RewardOptions
from sharpening.rewards.base import ScoreFn
from sharpening.rewards.mix import Mix
from sharpening.rewards.terms import Term, TermError, check_importable

CONFIG = "reward_config"
RESERVED = ("model", "checkpoint", "device", "batch_size")  # arguments that every scorer is given
PAIR = re.compile(r"[\w.:-]+=")  # a path with an equals sign begins with ./ or /
SECRET_NAME = re.compile(r"(^|[_-])(api_?key|key|token|secret|password|passphrase|authorization|credentials?)$", re.I)


class RewardSettings(BaseModel):
    """What `--reward_config` may say about a reward."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = None
    checkpoint: str | None = None
    replicas: int | None = Field(default=None, ge=1)
    num_gpus: float | None = Field(default=None, ge=0)
    num_threads: int | None = Field(default=None, ge=1)
    options: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("options")
    @classmethod
    def _not_said_elsewhere(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in RESERVED:
            if name in value:
                raise ValueError(f"'{name}' is no option: every scorer is given it")
        return value


SERVING = ("replicas", "num_gpus")  # what does not change a score
Settings = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class RewardPlan:
    """One reward and what it is served with.

    Attributes:
        term: The reward.
        watched: Whether it is only watched.
        model: Its model; `None` for its own.
        checkpoint: Weights of an architecture; `None` for its own.
        replicas: Serve replicas.
        threads: torch threads of a replica.
        num_gpus: GPUs of a replica; `None` for the share that the run gives each.
        options: Further keyword arguments of the scorer's class.
    """

    term: Term
    watched: bool
    model: str | None
    checkpoint: str | None
    replicas: int
    threads: int
    num_gpus: float | None
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The reward's name."""
        return self.term.name

    def scorer_options(self) -> dict[str, Any]:
        """Keyword arguments of the scorer's class, but for device and batch size."""
        given = {"model": self.model, "checkpoint": self.checkpoint}
        return {name: value for name, value in given.items() if value is not None} | self.options


def reward_plans(options: RewardOptions) -> tuple[RewardPlan, ...]:
    """Put together what each reward is served with; flags win over the file.

    Args:
        options: The job's options.

    Returns:
        The rewards that judge, then those that are only watched.

    Raises:
        OptionError: If an option names a reward that the job does not have, or the file cannot be used.
    """  # noqa: DOC502
    terms = (*options.terms, *options.watched)
    names = [term.name for term in terms]
    models = _given(options.reward_model, "reward_model", names)
    checkpoints = _given(options.reward_checkpoint, "reward_checkpoint", names)
    file = {name: RewardSettings(**values) for name, values in settle_config(options).items()}
    plans = []
    for place, term in enumerate(terms):
        own = file.get(term.name, RewardSettings())
        model = models.get(term.name, own.model)
        plans.append(
            RewardPlan(
                term=term, watched=place >= len(options.terms), model=None if model == EMBEDDED else model,
                checkpoint=checkpoints.get(term.name, own.checkpoint), replicas=own.replicas or options.reward_replicas,
                threads=own.num_threads or options.reward_threads, num_gpus=own.num_gpus, options=own.options,
            )
        )  # fmt: skip
    return tuple(plans)


def settle_config(options: RewardOptions) -> Settings:
    """What `--reward_config` says, read and checked; it goes into the run's `config.json`.

    Args:
        options: The job's options.

    Returns:
        Settings by the reward's name, without what was left out.

    Raises:
        OptionError: If the file cannot be read, names a reward that the job does not have, has a wrong value, or holds
            what looks like a secret.
    """
    found = options.reward_config
    where = f" (in {found})" if isinstance(found, str) else ""
    values: dict[str, Any] = read_config(found, CONFIG) if isinstance(found, str) else found or {}
    names = [term.name for term in (*options.terms, *options.watched)]
    settings: Settings = {}
    for name, given in values.items():
        _check_known(CONFIG, str(name), names, where)
        if not isinstance(given, dict):
            raise OptionError(CONFIG, f"{name} has no settings{where}", f"it may have {_known()}")
        try:
            settings[name] = RewardSettings(**given).model_dump(exclude_unset=True)
        except (ValidationError, TypeError) as error:
            raise OptionError(CONFIG, *_explain(error, name, where)) from error
        for key in _secrets(given):
            raise OptionError(
                CONFIG, f"'{key}' of {name} looks like a secret, and the run's config.json would hold it{where}",
                "pass it in the environment",
            )  # fmt: skip
    return settings


def scores_alike(config: Any) -> Any:
    """The part of settled settings that a resumed run must keep.

    Args:
        config: Of `settle_config`.

    Returns:
        The settings without those that only say how a reward is served.
    """
    kept = {name: {k: v for k, v in own.items() if k not in SERVING} for name, own in (config or {}).items()}
    return {name: own for name, own in kept.items() if own}


def check_terms(options: RewardOptions) -> None:
    """Refuse rewards that cannot be found or do not go together.

    Args:
        options: The job's options.

    Raises:
        OptionError: For the first thing that is wrong.
    """
    for option, terms in (("reward", options.terms), ("watch", options.watched)):
        for term in terms:
            try:
                check_importable(term)
            except TermError as error:
                raise OptionError(option, *str(error).split("; ", 1)) from error
    if options.reward_combine == "ranks" and len(options.terms) == 1:
        raise OptionError("reward_combine", "one reward has no ranks to combine", "leave it out, or name more rewards")
    judging = {term.name for term in options.terms}
    for term in options.watched:
        if term.name in judging:
            raise OptionError(
                "watch", f"{term.name} is a reward of the training, and is in every table anyway", "leave it out"
            )


def load_in_process(plans: Sequence[RewardPlan], mix: Mix | None, **common: Any) -> ScoreFn:
    """Make a job's reward in this process, as the plain loop takes it.

    Args:
        plans: The job's rewards; those that are only watched are left out.
        mix: How they are combined.
        **common: Keyword arguments of all scorers, such as `device`.

    Returns:
        The reward.
    """
    from sharpening.rewards import load_reward
    from sharpening.rewards.combined import CombinedScore

    judging = [plan for plan in plans if not plan.watched]
    parts = {plan.name: load_reward(plan.term.reward, **common | plan.scorer_options()) for plan in judging}
    return CombinedScore(parts, mix) if mix else parts[judging[0].name]


def _given(value: str | None, option: str, names: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` pairs by name, whose values may have commas; a plain value is the first reward's."""
    if value is None or (option == "reward_model" and value == EMBEDDED):
        return {}
    if not PAIR.match(value):
        return {names[0]: value}
    found: dict[str, str] = {}
    name = ""
    for item in (part.strip() for part in value.split(",")):
        if not PAIR.match(item):  # the last value goes on: a reward may have several files
            found[name] += f",{item}"
            continue
        name, _, own = item.partition("=")
        _check_known(option, name, names)
        if name in found:
            raise OptionError(option, f"{name} is named twice", "name it once")
        found[name] = own.strip()
    for name, own in found.items():
        if not all(own.split(",")):
            raise OptionError(option, f"'{name}={own}' is no NAME=VALUE", "pass NAME=VALUE,NAME=VALUE")
    return found


def _check_known(option: str, name: str, names: Sequence[str], where: str = "") -> None:
    if name not in names:
        raise OptionError(option, f"this job has no reward '{name}'{where}", f"it has {', '.join(names)}")


def _known() -> str:
    return ", ".join(RewardSettings.model_fields)


def _explain(error: Exception, name: str, where: str) -> tuple[str, str]:
    """What is wrong with a reward's settings, and what to do."""
    if not isinstance(error, ValidationError):
        return f"{name} has a setting without a name{where}", f"it may have {_known()}"
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{name} has '{path}', which is no setting{where}", f"it may have {_known()}"
    return f"{path} of {name}: {first['msg'].removeprefix('Value error, ')}{where}", "correct the value"


def _secrets(values: Any) -> Iterator[str]:
    """Names, at any depth, of what looks like a secret."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for name, value in items:
        if SECRET_NAME.search(str(name)) or (isinstance(value, str) and SECRET_URL.search(value)):
            yield str(name)
        yield from _secrets(value)
