"""The benchmark's process with torch in it: jobs come as JSON lines on standard input, answers go out the same way.

One such process stays for the whole benchmark and runs the in-process loop and the yardstick; each peak of memory is
taken in one of its own. The first line is the setting (`Setting`), every other one `{"job": name, "arguments": {...}}`.
Answers are `{"progress": text}` while it works, then `{"result": ...}` or `{"error": text}`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import IO, Any

import numpy as np
import torch

from rayjobs.benchmark.contenders import (
    Contender,
    PublicOrder,
    Sharpening,
    least_time_first,
    optimizer,
    our_contenders,
)
from rayjobs.benchmark.yardstick import Yardstick, YardstickOptions
from rayjobs.options import options_class
from rayjobs.rewards import load_in_process, reward_plans
from rayjobs.runtime.models import pipeline, pipeline_folder, vae
from rayjobs.runtime.training_data import training_prompts
from sharpening.data.prompts import PromptStream
from sharpening.data.source import PromptSource
from sharpening.evaluation.cost import peak_rss
from sharpening.evaluation.statistics import interval
from sharpening.loop import learn, train_in_process
from sharpening.methods.rlhf import RLHFSharpening
from sharpening.options import SharpeningOptions, TrainingOptions
from sharpening.policies import load_policy
from sharpening.rewards.base import ScoreFn
from sharpening.sampling import sample
from sharpening.seeds import noise
from sharpening.shapes import assets

EVALUATION_BATCH = 24  # images of one sampler call
SHOWN = ("branch_steps", "rollout_steps", "rollout_precision")  # options that the report names
REWARD_BATCH = 32  # images of one forward pass of the reward, as it is served


@dataclass(frozen=True)
class Setting:
    """What all jobs of a process share.

    Attributes:
        config: the Ray job's options, as its `config.json` holds them.
        threads: torch threads.
        device: `cpu` or `cuda`.
    """

    config: dict[str, Any]
    threads: int
    device: str


class Process:
    """The jobs. Models are loaded when a job first needs them, so that peaks of memory hold only what was used."""

    def __init__(self, setting: Setting, say: Callable[[str], None]) -> None:
        """Set torch up.

        Args:
            setting: what all jobs share.
            say: where progress goes.
        """
        torch.set_num_threads(setting.threads)
        values = dict(setting.config)
        self._options = options_class(values.pop("method"))(**values)
        torch.backends.cuda.matmul.allow_tf32 = self._options.allow_tf32
        self._device, self._say = setting.device, say
        method = self._options.method_options()
        assert isinstance(method, SharpeningOptions)
        self._method, self._training = method, self._options.training_options()

    # -- jobs ------------------------------------------------------------------------------------------------------

    def device_name(self) -> str:
        """The accelerator's name; empty on a CPU."""
        return torch.cuda.get_device_name() if self._device == "cuda" else ""

    def loop(self, updates: int) -> list[dict[str, float]]:
        """The in-process loop from the start, with the Ray job's own options.

        Args:
            updates: how many.

        Returns:
            Its metrics, a row an update.
        """
        training = replace(self._training, updates=updates)
        method = RLHFSharpening(self._method)
        # Loaded anew, as the Ray job is: prompts that an earlier turn embedded would cost nothing.
        policy, score = self._load_policy(), self._load_reward(batch_size=REWARD_BATCH)

        def tell(update: int, row: dict[str, float]) -> None:
            self._say(f"update {update + 1}/{updates}, {row['seconds']:.1f} s")

        return train_in_process(policy, method, score, PromptSource(self._prompts), training, tell)

    def rates(self, seconds: float, evaluation_prompts: int) -> dict[str, Any]:
        """Ours with K = 1 and K = 4 and the yardstick beside each other, at equal wall time.

        Args:
            seconds: time of each.
            evaluation_prompts: held-out prompts on which the rewards of K = 1 and K = 4 are compared with the base.

        Returns:
            By contender its `seconds` (of each update), `prompts`, `pairs`, `options` and, for two of them, `reward`.
        """
        yardstick = YardstickOptions()
        score = self._load_reward(batch_size=yardstick.branches)  # or it would pay for padding
        policy = self._policy()
        public = Yardstick(policy, policy.frozen_copy(), score, yardstick)
        contenders: dict[str, Contender] = {
            "public order": PublicOrder(public, self._stream(self._training), self._training.seed)
        }
        options: dict[str, dict[str, Any]] = {"public order": asdict(yardstick)}
        # Tasks are there to spread an update over actors; one process rolls it out whole.
        training = replace(self._training, rollout_batch_size=self._training.prompts_per_update)
        for number, (name, changes) in enumerate(our_contenders(yardstick).items(), start=1):
            method = replace(self._method, **changes)
            stream = self._stream(self._training, number)  # or it would find prompts that others embedded
            contenders[name] = Sharpening(self._policy(), self._score, stream, method, training)
            options[name] = {field: getattr(method, field) for field in (*changes, *SHOWN)}
        spent = least_time_first(contenders, seconds, self._say)
        found: dict[str, Any] = {
            name: {"seconds": spent[name], "prompts": c.prompts, "pairs": c.pairs, "options": options[name]}
            for name, c in contenders.items()
        }
        for name, change in self._gains(contenders, evaluation_prompts).items():
            found[name]["reward"] = change
        return found

    def collect(self, branches: int, prompts: int, path: str) -> int:
        """Roll out an experience and leave it in a file.

        Args:
            branches: n.
            prompts: how many.
            path: the file.

        Returns:
            Its groups.
        """
        training = replace(self._training, prompts_per_update=prompts)
        method = replace(self._method, branches=branches, latents_per_prompt=0)
        rollout = Sharpening(self._policy(), self._score, self._stream(training), method, training)
        experience = rollout.collect(0, range(prompts))
        torch.save(experience, path)
        return experience.groups

    def learner_memory(self, path: str) -> dict[str, int]:
        """Peak memory of learning from an experience; for a process that does nothing else.

        Args:
            path: the file that `collect` left.

        Returns:
            Bytes: `loaded` (resident before learning), `peak` (resident), `cuda` (peak of torch's allocations).
        """
        policy = self._policy()
        adam = optimizer(policy, self._training)
        experience = torch.load(path, weights_only=False)  # written by `collect` a moment ago
        loaded = resident()
        for _ in range(2):  # the optimiser's state exists from the first step on
            learn(policy, RLHFSharpening(self._method), experience, adam, self._training)
        return {"loaded": loaded, "peak": peak_rss(), "cuda": self._cuda_peak()}

    def yardstick_memory(self, branches: int) -> dict[str, int]:
        """Peak memory of the yardstick's update; for a process that does nothing else.

        Args:
            branches: n.

        Returns:
            As `learner_memory`.
        """
        options = YardstickOptions(branches=branches)
        policy = self._policy()
        yardstick = Yardstick(policy, policy.frozen_copy(), self._load_reward(batch_size=branches), options)
        prompts = self._stream(self._training)
        loaded = resident()
        for update in range(2):
            yardstick.update(prompts.prompt(update, 0), self._training.seed, update)
        return {"loaded": loaded, "peak": peak_rss(), "cuda": self._cuda_peak()}

    # -- parts -----------------------------------------------------------------------------------------------------

    @cached_property
    def _base(self) -> Any:
        return self._load_policy()

    def _load_policy(self) -> Any:
        self._say("loading the model")
        options = self._options
        folder = pipeline_folder(pipeline(options))
        return load_policy(folder, self._device, resolution=options.resolution, vae=vae(options))

    @cached_property
    def _score(self) -> ScoreFn:
        return self._load_reward(batch_size=REWARD_BATCH)

    def _load_reward(self, batch_size: int) -> ScoreFn:
        plans, mix = reward_plans(self._options), self._options.mix
        return load_in_process(plans, mix, device=self._device, batch_size=batch_size)

    @cached_property
    def _prompts(self) -> list[str]:
        return training_prompts(self._options)

    def _stream(self, training: TrainingOptions, number: int = 0) -> PromptStream:
        """The job's prompts; other numbers give other orders of them."""
        return PromptStream(self._prompts, training.seed + number, training.prompts_per_update)

    def _policy(self) -> Any:
        """The base model with a denoiser of its own to train."""
        policy = self._base.frozen_copy()
        policy.denoiser.requires_grad_(True)
        return policy

    def _cuda_peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self._device == "cuda" else 0

    def _gains(self, contenders: Mapping[str, Contender], count: int) -> dict[str, dict[str, float]]:
        """Mean change of the reward on held-out prompts at fixed noise, with its 95 % interval."""
        if count < 2:
            return {}
        if self._prompts == assets.training_prompts():
            held_out = [entry.prompt for entry in assets.validation_benchmark()]
            prompts = held_out[:: max(1, len(held_out) // count)][:count]
        else:
            prompts = self._prompts[-count:]
        self._say(f"rewards on {len(prompts)} held-out prompts")
        before = self._rewards(self._base, prompts)
        found = {}
        for name in ("K=1", "K=4"):
            contender = contenders[name]
            assert isinstance(contender, Sharpening)
            change = interval(self._rewards(contender.policy, prompts) - before)
            found[name] = asdict(change) | {"before": float(before.mean()), "prompts": len(prompts)}
        return found

    def _rewards(self, policy: Any, prompts: Sequence[str]) -> np.ndarray:
        """Rewards `[N]` of one image a prompt at fixed noise, as rollouts are sampled."""
        values = []
        for start in range(0, len(prompts), EVALUATION_BATCH):
            part = list(prompts[start : start + EVALUATION_BATCH])
            draws = [noise(policy.latent_shape, self._training.seed, "benchmark", start + i) for i in range(len(part))]
            steps, guidance = self._method.rollout_steps, self._method.guidance_scale
            x0 = sample(policy, policy.encode(part), torch.stack(draws), steps, guidance)
            values.append(np.asarray(self._score(policy.decode(x0), part).values, dtype=np.float64))
        return np.concatenate(values)


def resident() -> int:
    """Resident memory of this process now, in bytes; where only its peak is known, that."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_rss()


JOBS = ("device_name", "loop", "rates", "collect", "learner_memory", "yardstick_memory")


def serve(lines: IO[str], answers: IO[str]) -> None:
    """Do jobs until there are no more.

    Args:
        lines: where jobs come from.
        answers: where answers go.

    Raises:
        ValueError: if there is no such job; like every job's own error it is answered first.
    """

    def answer(kind: str, value: Any) -> None:
        print(json.dumps({kind: value}), file=answers, flush=True)

    process: Process | None = None
    for line in lines:
        message = json.loads(line)
        try:
            if process is None:
                process = Process(Setting(**message), lambda text: answer("progress", text))
                continue
            if message["job"] not in JOBS:
                raise ValueError(f"there is no job {message['job']!r}")
            answer("result", getattr(process, message["job"])(**message["arguments"]))
        except Exception as error:
            answer("error", f"{type(error).__name__}: {error}")
            raise


if __name__ == "__main__":
    # Libraries print to standard output as they like; the answers keep theirs for themselves.
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, own)
