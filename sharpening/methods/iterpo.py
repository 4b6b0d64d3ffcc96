"""IterPO (IterComp, arXiv 2410.07171): ReFL steps on compositional reward models that are retrained between rounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sharpening.data.source import Batch
from sharpening.methods.base import Experience, Loss, Seeds, check_batch
from sharpening.methods.collecting import Stopwatch, precision, score_images
from sharpening.methods.ranking import rank_pairs
from sharpening.methods.reward_models import RewardModels, join, load_reward_models, pack, pairwise_accuracy, unpack
from sharpening.methods.rounds import Round
from sharpening.options.iterpo import IterPOOptions
from sharpening.policies.base import Condition, Policy, Prediction
from sharpening.rewards.base import ScoreFn
from sharpening.seeds import generator, noise


@dataclass(kw_only=True)
class IterPOExperience(Experience):
    """A state near the clean end for each prompt; G = P groups. `path_rewards` are the rewards of x̂_0's image.

    Attributes:
        x_t: `[G, C, H, W]`, states reached without gradient.
        timesteps: `[G]`.
    """

    x_t: Float[Tensor, "group channel height width"]
    timesteps: Int[Tensor, " group"]


class IterPO:
    """IterPO as the two hooks of a method and the round between updates (`rounds.InRounds`).

    A step is ReFL's (arXiv 2304.05977): sample without gradient down to a step drawn from the last of the grid, predict
    x̂_0 with gradient, decode it and descend `λ Σ_k relu(2 − r_k)` over the reward models. Our sampler is the project's
    deterministic DDIM; the published code walks ancestral DDPM steps.

    Between two rounds the preference data is extended with images of the tuned policy and the models are retrained.
    Published, people and the reward models themselves rank those images; here the run's reward ranks them, the same for
    every model. That reward is no part of the loss: it ranks, and it draws the curve.

    Attributes:
        options: the method's options.
    """

    def __init__(self, options: IterPOOptions | None = None) -> None:
        """Make the method; the reward models are loaded where the loss is first computed.

        Args:
            options: None means the defaults.
        """
        self.options = options or IterPOOptions()
        self._models: RewardModels | None = None
        self._state = b""

    @torch.no_grad()
    def collect(
        self, policy: Policy, reference: Policy, score: ScoreFn, batch: Batch, seeds: Seeds
    ) -> IterPOExperience:
        """Sample down to the step that will have a gradient, and score the image it predicts.

        Args:
            policy: the present model.
            reference: the model it started from; not asked.
            score: the reward; called once, for the curve alone.
            batch: the task's prompts.
            seeds: counters of all random numbers; one slot a prompt.

        Returns:
            The experience, on the CPU, without a graph; a prompt whose image has no score is in `dropped` alone.

        Raises:
            ValueError: if prompts and slots differ in number, or the reward answers for another number of images.
        """  # noqa: DOC502
        del reference
        check_batch(batch, seeds)
        options, clock, prompts, spent = self.options, Stopwatch(policy.device), batch.prompts, policy.nfe
        places = self._places(seeds)
        timesteps = policy.timesteps(options.rollout_steps)[places.to(policy.device)]
        with clock("generate"):
            condition = policy.encode(prompts)
            with precision(options, policy.device):
                x_t = self._walk(policy, condition, places, seeds)
                x0 = self._predict(policy, x_t, timesteps, condition).x0
        with clock("decode"), precision(options, policy.device):
            images = policy.decode(x0)
        with clock("reward"):
            values, failed = score_images(score, images, prompts, torch.arange(len(prompts)))
        kept = [b for b in range(len(prompts)) if b not in failed]
        return IterPOExperience(
            prompts=[prompts[b] for b in kept],
            slots=[seeds.slots[b] for b in kept],
            update=seeds.update,
            version=0,
            condition=condition.index(kept).to("cpu"),
            group_prompt=torch.arange(len(kept)),
            path_rewards=values[kept, None],
            x_t=x_t[kept].cpu(),
            timesteps=timesteps[kept].cpu(),
            nfe=policy.nfe - spent,
            seconds=clock.seconds,
            dropped=[(seeds.slots[b], reason) for b, reason in sorted(failed.items())],
            images_scored=len(images),
        )

    def loss(self, policy: Policy, experience: IterPOExperience) -> Loss:
        """ReFL's loss `λ Σ_k relu(2 − r_k(decode(x̂_0), c))`, with gradient through decoder and reward models.

        Args:
            policy: the model in training.
            experience: at least one group.

        Returns:
            Mean over groups, with its metrics; `reward_K` is the mean of model K, `satisfied` the share of (group,
            model) that ask for nothing more.
        """
        options, models, device = self.options, self.models(policy.device), policy.device
        condition = experience.condition.index(experience.group_prompt).to(device)
        prediction = self._predict(policy, experience.x_t.to(device), experience.timesteps.to(device), condition)
        prompts = [experience.prompts[b] for b in experience.group_prompt.tolist()]
        rewards = models.rewards(policy.pixels(prediction.x0), prompts)  # (models, G)
        lacking = (options.satisfied - rewards).relu()
        value = options.loss_scale * lacking.sum(0).mean()
        metrics = {
            "loss": value,
            "satisfied": (lacking == 0).float().mean(),
            "reward": experience.path_rewards.mean(),
        } | {f"reward_{name}": reward.mean() for name, reward in zip(models.names, rewards, strict=True)}
        return Loss(value, {name: float(number.detach()) for name, number in metrics.items()})

    def models(self, device: torch.device) -> RewardModels:
        """The reward models in their present state, loaded at the first call.

        Args:
            device: where they are to work.

        Returns:
            The models, frozen.
        """
        if self._models is None:
            self._models = self._load(device, self._state)[0]
        return self._models

    # -- rounds ----------------------------------------------------------------------------------------------------

    def round_examples(self, update: int, updates: int) -> int:
        """Prompts that the round beginning with an update needs.

        Args:
            update: the update, from 0.
            updates: updates of the run.

        Returns:
            `round_prompts` at the starts of all rounds but the first, which are spread evenly; else 0.
        """
        rounds = self.options.outer_rounds
        starts = {updates * r // rounds for r in range(1, rounds)} - {0}
        return self.options.round_prompts if update in starts else 0

    def begin_round(
        self, policy: Policy, reference: Policy, score: ScoreFn, batch: Batch, seeds: Seeds, state: bytes
    ) -> Round:
        """Extend the preference data with ranked images of the tuned policy, and retrain the reward models on it.

        Args:
            policy: the tuned model.
            reference: the model it started from; not asked.
            score: the reward that ranks; called once.
            batch: the round's prompts.
            seeds: counters of all random numbers; one slot a prompt.
            state: the state before; b"" before the first.

        Returns:
            The models' new weights with all pairs so far; its metrics are the number of new pairs and the share of
            those that the models rank as the reward does, before and after. A prompt with an image that has no score
            gives no pair and is in `dropped`; one whose images all score the same gives no pair.

        Raises:
            ValueError: if prompts and slots differ in number, or the reward answers for another number of images.
        """  # noqa: DOC502
        del reference
        check_batch(batch, seeds)
        options, clock = self.options, Stopwatch(policy.device)
        ranked = rank_pairs(policy, score, batch.prompts, seeds, options.round_samples, options)
        models, known = self._load(policy.device, state)
        pairs, metrics = join(known, ranked.batch), {"pairs": float(len(ranked.batch))}
        with clock("retrain"):
            if len(ranked.batch):
                metrics["accuracy_before"] = pairwise_accuracy(models, ranked.batch, policy.device)
                seed = int(generator(seeds.run_seed, "retrain", seeds.update).integers(2**31))
                models.retrain(pairs, options.round_steps, seed)
                metrics["accuracy_after"] = pairwise_accuracy(models, ranked.batch, policy.device)
        return Round(
            state=pack(models.state(), pairs),
            nfe=ranked.nfe,
            seconds=ranked.seconds | clock.seconds,
            dropped=ranked.dropped,
            images_scored=ranked.images_scored,
            metrics=metrics,
        )

    def take(self, state: bytes) -> None:
        """Compute `loss` with a round's reward models from now on.

        Args:
            state: a `Round`'s state, or b"" for the models as they come.
        """
        self._state, self._models = state, None

    def _load(self, device: torch.device, state: bytes) -> tuple[RewardModels, Batch]:
        models = load_reward_models(self.options.reward_models, device)
        weights, pairs = unpack(state)
        if weights:
            models.load_state(weights)
        return models, pairs

    # -- the stages of collect -------------------------------------------------------------------------------------

    def _places(self, seeds: Seeds) -> Int[Tensor, " prompt"]:
        """Place in the grid of each prompt's step with gradient; the published 40-step grid gives 30…39."""
        total = self.options.rollout_steps
        first = int(total * self.options.free_share)
        draws = [generator(seeds.run_seed, "timestep", seeds.update, slot) for slot in seeds.slots]
        return torch.tensor([int(draw.integers(first, total)) for draw in draws])

    def _walk(
        self, policy: Policy, condition: Condition, places: Int[Tensor, " prompt"], seeds: Seeds
    ) -> Float[Tensor, "prompt channel height width"]:
        """Each prompt's state at its place, sampled from noise."""
        steps = self.options.rollout_steps
        draws = [noise(policy.latent_shape, seeds.run_seed, "latent", seeds.update, slot) for slot in seeds.slots]
        x_t, places = torch.stack(draws).to(policy.device), places.to(policy.device)
        for place, t in enumerate(policy.timesteps(steps).tolist()):
            rows = (places > place).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            times = torch.full((len(rows),), t, dtype=torch.long, device=policy.device)
            prediction = self._predict(policy, x_t[rows], times, condition.index(rows))
            x_t[rows] = policy.step(x_t[rows], times, policy.previous(times, steps), prediction)
        return x_t

    def _predict(self, policy: Policy, x_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
        return policy.predict(x_t, t, condition, self.options.guidance_scale)
