"""The plain loop: sharpens a policy in one process with the same pieces the distributed job uses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from sharpening.data.bucket_stream import stream_of
from sharpening.data.prompts import Stream
from sharpening.data.reading import counts_of, data_columns, read
from sharpening.data.source import Source
from sharpening.ema import WeightAverage
from sharpening.learning_rate import learning_rate_at
from sharpening.methods.base import Experience, Method, Seeds
from sharpening.methods.rounds import InRounds, round_slots
from sharpening.options import TrainingOptions
from sharpening.policies.base import Policy
from sharpening.policies.prompt_length import overlong
from sharpening.prepare import prepare
from sharpening.rewards.base import ScoreFn
from sharpening.rewards.combined import mix_of, scaled, seen_by
from sharpening.rewards.statistics import Statistics, before, columns, merge
from sharpening.slots import dropped_columns
from sharpening.updates import NonFiniteLoss, collect_update, inner_parts, mean_metrics, micro_batches

__all__ = ["TrainingOptions", "learn", "train_in_process"]


def train_in_process(
    policy: Policy,
    method: Method,
    score: ScoreFn,
    source: Source,
    options: TrainingOptions,
    on_update: Callable[[int, dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train a policy; the policy as it comes in is the reference.

    Args:
        policy: the model; its denoiser is changed in place. With `rank` it gets LoRA adapters, unless it has some; with
            `use_ema` it ends with the average of its weights.
        method: what to learn.
        score: the reward; several at once as a `CombinedScore`, which is standardised by what the updates before saw.
        source: what is learnt from: prompts, images or pairs, as the method needs.
        options: options of training.
        on_update: called with the update's number and metrics after each update.

    Returns:
        Metrics of each update: the method's, and `update`, `grad_norm`, `learning_rate`, `nfe`, `images_scored`,
        `dropped`, `seconds` and `seconds_STAGE`; where examples were skipped or prompts cut, `skipped`,
        `skipped_REASON` and `truncated`; of several rewards also `reward_NAME_count`, `_mean` and `_std` of each, and
        their common `reward_level`.

    Raises:
        NonFiniteLoss: if a loss or gradient is not finite; the weights are those of the last good update.
        TooManyFailures: if too many prompts of an update fail to score.
        RewardUnavailable: if the reward as a whole stays down.
    """  # noqa: DOC502
    prepare(policy, options, learns=True)
    reference = policy.frozen_copy()
    parameters = policy.trainable()
    average = WeightAverage(policy.trainable_state(), options.ema_decay) if options.use_ema else None
    optimizer = torch.optim.AdamW(
        parameters,
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        weight_decay=options.adam_weight_decay,
    )
    stream = stream_of(len(source), counts_of(source), options.seed, options.prompts_per_update)
    mix = mix_of(score)
    history: list[dict[str, float]] = []
    state, spent = b"", 0
    for update in range(options.updates):
        begin = time.perf_counter()
        statistics = before(history, update, mix.names) if mix else {}
        slots = round_slots(method, update, options.updates)
        if slots:
            assert isinstance(method, InRounds)
            items = [stream.index(update, slot) for slot in slots]
            batch = read(source, items, options.seed, update, slots).batch
            seeds = Seeds(options.seed, update, slots)
            made = method.begin_round(policy, reference, scaled(score, statistics), batch, seeds, state)
            state, spent = made.state, made.nfe
            method.take(state)
        experience, seen, faults = _collect(
            policy, reference, method, score, statistics, source, stream, options, update
        )
        learning = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(update, options)
        metrics = {"update": float(update), "learning_rate": optimizer.param_groups[0]["lr"]}
        metrics |= learn(policy, method, experience, optimizer, options)
        if average is not None:
            average.step(policy.trainable_state())
        end = time.perf_counter()
        metrics |= {f"seconds_{stage}": spent for stage, spent in experience.seconds.items()}
        metrics |= {
            "seconds_learn": end - learning,
            "seconds": end - begin,
            "nfe": float(experience.nfe + spent),
            "images_scored": float(experience.images_scored),
            **dropped_columns(experience.dropped),
            **faults,
            **columns(seen),
        }
        level = mix.level(metrics, history[0] if history else metrics) if mix else None
        if level is not None:
            metrics["reward_level"] = level
        spent = 0
        history.append(metrics)
        if on_update is not None:
            on_update(update, metrics)
    if average is not None:
        policy.load_trainable_state(average.state())
    return history


def _collect(
    policy: Policy,
    reference: Policy,
    method: Method,
    score: ScoreFn,
    statistics: Statistics,
    source: Source,
    stream: Stream,
    options: TrainingOptions,
    update: int,
) -> tuple[Experience, Statistics, dict[str, int]]:
    """An update's experience, what the rewards said in it, and what was wrong with its examples."""
    seen: list[Statistics] = []
    skipped: list[tuple[int, str]] = []
    prompts: list[str] = []

    def collect_tasks(tasks: list[tuple[int, ...]]) -> list[Experience]:
        experiences = []
        for slots in tasks:
            items = [stream.index(update, slot) for slot in slots]
            reading = read(source, items, options.seed, update, slots)
            skipped.extend(reading.skipped)
            prompts.extend(reading.batch.prompts)
            own = scaled(score, statistics)
            experience = method.collect(policy, reference, own, reading.batch, Seeds(options.seed, update, slots))
            experience.version = update
            seen.append(seen_by(own))
            experiences.append(experience)
        return experiences

    experience = collect_update(
        collect_tasks, options.prompts_per_update, options.rollout_batch_size, options.max_failed_share
    )
    return experience, merge(seen), data_columns(skipped, overlong(policy, prompts))


def learn(
    policy: Policy,
    method: Method,
    experience: Experience,
    optimizer: torch.optim.Optimizer,
    options: TrainingOptions,
) -> dict[str, float]:
    """Learn from one update's experience: `inner_steps` optimiser steps, each in passes of `train_batch_size` groups.

    Args:
        policy: the model; its denoiser is changed in place.
        method: what to learn.
        experience: the update's whole experience.
        optimizer: over the denoiser's parameters.
        options: options of training.

    Returns:
        The method's metrics and `grad_norm` before clipping, as means over the steps.

    Raises:
        NonFiniteLoss: if a loss or its gradient is not finite; that step is not taken.
    """  # noqa: DOC502
    steps = [_step(policy, method, part, optimizer, options) for part in inner_parts(experience, options.inner_steps)]
    return mean_metrics((metrics, 1.0) for metrics in steps)


def _step(
    policy: Policy,
    method: Method,
    experience: Experience,
    optimizer: torch.optim.Optimizer,
    options: TrainingOptions,
) -> dict[str, float]:
    """One optimiser step."""
    optimizer.zero_grad(set_to_none=True)
    collected = []
    for part, weight in micro_batches(experience, options.train_batch_size):
        loss = method.loss(policy, part)
        if not math.isfinite(loss.value.item()):
            raise NonFiniteLoss(
                f"the loss of update {experience.update} is {loss.value.item()}; lower learning_rate or beta"
            )
        (weight * loss.value).backward()
        collected.append((loss.metrics, weight))
    grad_norm = torch.nn.utils.clip_grad_norm_(policy.denoiser.parameters(), options.max_grad_norm).item()
    if not math.isfinite(grad_norm):
        raise NonFiniteLoss(f"the gradient of update {experience.update} is {grad_norm}; lower learning_rate or beta")
    optimizer.step()
    return mean_metrics(collected) | {"grad_norm": grad_norm}
