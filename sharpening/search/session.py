"""One call of a search: its sampler, its purse and the best image of each prompt so far."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sharpening.policies.base import Condition, Policy, Prediction
from sharpening.rewards.base import ScoreFn
from sharpening.search.base import SearchOptions, SearchResult, SearchSeeds
from sharpening.search.scoring import Scored, score_candidates
from sharpening.seeds import generator, noise

CLEAN = -1
"""The timestep after the last: below 0 is the clean end."""

Rows = Float[Tensor, "row channel height width"]
"""Latents of P prompts with K candidates each, a prompt's candidates in a row."""


class Session:
    """What the searches share. All prompts go in step, so that each has spent the same.

    Attributes:
        policy: the model.
        prompts: the P prompts.
        options: steps and guidance of the sampler.
        times: the sampler's timesteps, the noisiest first, then `CLEAN`.
    """

    def __init__(
        self,
        policy: Policy,
        score: ScoreFn,
        prompts: Sequence[str],
        budget: int,
        seeds: SearchSeeds,
        options: SearchOptions,
    ) -> None:
        """Open the account.

        Args:
            policy: the model.
            score: the reward.
            prompts: at least one.
            budget: denoiser evaluations an image.
            seeds: counters of all random numbers; one index a prompt.
            options: steps and guidance of the sampler.

        Raises:
            ValueError: if there is no prompt, or prompts and indices differ in number.
        """
        if not prompts or len(prompts) != len(seeds.indices):
            raise ValueError(f"{len(prompts)} prompts came with {len(seeds.indices)} indices; pass one index a prompt")
        self.policy, self.prompts, self.options = policy, list(prompts), options
        self.times: list[int] = [*policy.timesteps(options.steps).tolist(), CLEAN]
        self._score, self._budget, self._seeds = score, budget, seeds
        self._began, self._nfe_before = time.perf_counter(), policy.nfe
        self._condition = policy.encode(self.prompts)
        self._seconds = {"decode": 0.0, "reward": 0.0}
        self._images_scored = 0
        self._best: dict[int, tuple[float, np.ndarray]] = {}
        self._reasons: dict[int, str] = {}
        self._trace: list[list[tuple[int, float]]] = [[] for _ in prompts]
        self._image_shape: tuple[int, ...] = ()

    # -- the purse -------------------------------------------------------------------------------------------------

    @property
    def spent(self) -> int:
        """Denoiser evaluations of each prompt so far."""
        return (self.policy.nfe - self._nfe_before) // len(self.prompts)

    @property
    def left(self) -> int:
        """Predictions of one latent that each prompt can still pay for."""
        price = self.policy.prediction_nfe(self.options.guidance_scale)
        return (self._budget - self.spent) // price

    # -- random numbers --------------------------------------------------------------------------------------------

    def noise(self, count: int, *counters: int | str, first: int = 0) -> Rows:
        """Standard normal noise for the candidates of each prompt.

        Args:
            count: candidates K of a prompt.
            *counters: what the noise is for; no two draws of a search may share them.
            first: number of the first candidate.

        Returns:
            On the policy's device, in float32.
        """
        draws = [
            noise(self.policy.latent_shape, self._seeds.run_seed, "search", index, *counters, k)
            for index in self._seeds.indices
            for k in range(first, first + count)
        ]
        return torch.stack(draws).to(self.policy.device)

    def uniform(self, count: int, *counters: int | str) -> Float[Tensor, "prompt count"]:
        """Uniform numbers in [0, 1) for each prompt.

        Args:
            count: how many.
            *counters: what they are for.

        Returns:
            float64, on the CPU.
        """
        draws = [
            generator(self._seeds.run_seed, "search", index, *counters).random(count) for index in self._seeds.indices
        ]
        return torch.from_numpy(np.stack(draws))

    # -- the sampler -----------------------------------------------------------------------------------------------

    def condition(self, count: int) -> Condition:
        """Embeddings, one row a candidate.

        Args:
            count: candidates of a prompt.

        Returns:
            P·K rows.
        """
        return self._condition.repeat_interleave(count)

    def pick(self, x: Rows, candidates: Int[Tensor, "prompt kept"]) -> Rows:
        """Some candidates of each prompt.

        Args:
            x: all K candidates of each prompt.
            candidates: which to keep; they may repeat.

        Returns:
            Their latents, in that order.
        """
        count = len(x) // len(self.prompts)
        rows = torch.arange(len(self.prompts))[:, None] * count + candidates
        return x[rows.flatten().to(x.device)]

    def pick_prediction(self, prediction: Prediction, candidates: Int[Tensor, "prompt kept"]) -> Prediction:
        """The predictions that belong to some candidates of each prompt.

        Args:
            prediction: of all K candidates of each prompt.
            candidates: which to keep; they may repeat.

        Returns:
            Their predictions, in that order.
        """
        return Prediction(eps=self.pick(prediction.eps, candidates), x0=self.pick(prediction.x0, candidates))

    def at(self, x: Rows, t: int) -> Int[Tensor, " row"]:
        """One timestep for all rows.

        Args:
            x: the rows.
            t: the timestep.

        Returns:
            It, once a row.
        """
        return torch.full((len(x),), t, dtype=torch.long, device=x.device)

    def predict(self, x: Rows, t: int) -> Prediction:
        """Predict noise and clean latent of every candidate; costs each prompt one prediction a candidate.

        Args:
            x: noisy latents.
            t: their timestep.

        Returns:
            The prediction.
        """
        condition = self.condition(len(x) // len(self.prompts))
        return self.policy.predict(x, self.at(x, t), condition, self.options.guidance_scale)

    def step(
        self, x: Rows, t: int, t_next: int, prediction: Prediction, eta: float = 0.0, z: Rows | None = None
    ) -> Rows:
        """One sampler step of every candidate; the last is deterministic, as its noise would stay in the image.

        Args:
            x: noisy latents.
            t: their timestep.
            t_next: where they go.
            prediction: the policy's prediction there.
            eta: η of the step; 0 is deterministic.
            z: standard normal noise, needed for η > 0.

        Returns:
            Latents at t_next.
        """
        eta = 0.0 if t_next == CLEAN else eta
        return self.policy.step(x, self.at(x, t), self.at(x, t_next), prediction, eta, z)

    def walk(self, x: Rows, times: Sequence[int]) -> Rows:
        """The probability-flow ODE along a grid, by DDIM (Euler's method in the noise-to-signal ratio).

        Args:
            x: latents at the first timestep.
            times: timesteps, descending; one prediction a candidate is paid for each but the last.

        Returns:
            Latents at the last timestep.
        """
        for t, t_next in pairwise(times):
            x = self.step(x, t, t_next, self.predict(x, t))
        return x

    # -- candidates ------------------------------------------------------------------------------------------------

    def score(self, x0: Rows) -> Scored:
        """Decode and score clean latents.

        Args:
            x0: all candidates of each prompt.

        Returns:
            The candidates with their rewards.
        """
        self._wait()  # so that denoising is not booked as decoding
        with self._clock("decode"):
            images = self.policy.decode(x0)
        with self._clock("reward"):
            scored = score_candidates(self._score, images, self.prompts)
        self._images_scored += len(images)
        self._image_shape = images.shape[1:]
        return scored

    def offer(self, scored: Scored) -> None:
        """Finished images: the best of them is kept where it is better than the prompt's best so far.

        Args:
            scored: the images, which the search may return.
        """
        self._reasons |= {prompt: reason for (prompt, _), reason in scored.reasons.items()}
        for b, k in enumerate(scored.top(1).squeeze(1).tolist()):
            reward = float(scored.rewards[b, k])
            if scored.valid[b, k] and (b not in self._best or reward > self._best[b][0]):
                self._best[b] = (reward, scored.images[b, k].copy())
            if b in self._best:
                self._trace[b].append((self.spent, self._best[b][0]))

    def best_rewards(self) -> Float[Tensor, " prompt"]:
        """Reward of each prompt's best image so far.

        Returns:
            float64; −∞ where there is none.
        """
        return torch.tensor([self._best.get(b, (-torch.inf,))[0] for b in range(len(self.prompts))]).double()

    def result(self) -> SearchResult:
        """Close the account.

        Returns:
            What was found.
        """
        self._wait()
        elapsed = time.perf_counter() - self._began
        images = np.zeros((len(self.prompts), *self._image_shape), np.uint8)
        rewards = np.full(len(self.prompts), np.nan)
        for b, (reward, image) in self._best.items():
            images[b], rewards[b] = image, reward
        return SearchResult(
            images=images,
            rewards=rewards,
            nfe=self.policy.nfe - self._nfe_before,
            images_scored=self._images_scored,
            seconds={"denoise": elapsed - sum(self._seconds.values()), **self._seconds},
            failures={b: self._reasons[b] for b in range(len(self.prompts)) if b not in self._best},
            trace=self._trace,
        )

    def _wait(self) -> None:
        if self.policy.device.type == "cuda":
            torch.cuda.synchronize(self.policy.device)

    @contextmanager
    def _clock(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._seconds[stage] += time.perf_counter() - begin
