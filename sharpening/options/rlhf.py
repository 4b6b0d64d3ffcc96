"""Options of RLHF sharpening (Algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sharpening.options.base import MethodOptions, described, require


@dataclass(frozen=True)
class SharpeningOptions(MethodOptions):
    """Options of RLHF sharpening. The defaults are the setting that worked on the embedded world.

    Attributes:
        branches: n, branches of one prompt and timestep.
        branch_steps: m, denoising steps (states) of a branch.
        temperature: λ of the path integral; 0 is the paper's argmax and argmin.
        loss: "dpo_margin" (Eq. 11), "dpo" (no margin) or "rebel" (regression on the reward gap).
        beta: β, strength of the log ratio; errors are per-element means.
        reward_scale: η, what one unit of reward gap adds to the margin (0: plain DPO).
        snr_gamma: γ of the states' weights ω_T = min(SNR, γ) / SNR inside the loss (0: all weigh the same).
        winner_weight: μ, weight of Eq. 9's supervised error on the winner beside the preference loss (0: none).
        timesteps_per_rollout: K, timesteps at which one generated image is branched, stratified over the grid.
        selection: "prompt": one winner and one loser a prompt, by the path reward over all its K timesteps; "timestep":
            each timestep picks its own (at high noise the branches' predictions hardly differ, so it picks by chance);
            "image": by the reward of the branches' clean images x_0, which only winner and loser are branched from.
        latents_per_prompt: generated x_0 per prompt: 0 = one a branch, 1 = one shared by all (the paper's text).
        branch_noise: "shared" by the branches of a (prompt, timestep), "fresh" for each, or the branch's "own"
            sampling noise.
        target: "initial": regress every state to the branch's ε; "state": to the noise implied by x_T and x_0.
        loss_guidance_scale: guidance of the prediction inside the loss (1: the conditional prediction alone).
        guidance_in_loss: whether that is the rollouts' guidance, whatever it is.
    """

    branches: int = described(
        4, "branches of one prompt and timestep (paper: 3)", "branches", "n", ge=2,
        fix="RLHF sharpening compares a winner with a loser, so pass --branches 2 or more",
    )  # fmt: skip
    branch_steps: int = described(1, "steps that a branch takes (paper: 3)", "denoising steps", "m", ge=1)
    temperature: float = described(
        0.0, "path-integral temperature; 0 takes the best and the worst branch", "reward units", "λ", ge=0
    )
    loss: Literal["dpo_margin", "dpo", "rebel"] = described(
        "dpo_margin", "dpo_margin is Eq. 11, dpo leaves its reward margin out, rebel is a regression", symbol="L_RLHF"
    )
    beta: float = described(200.0, "strength of the pull to the reference", "1 / mean squared error", "β", gt=0)
    reward_scale: float = described(
        0.0, "scale of the reward gap in the loss; 0 leaves it out", "1 / reward unit", "η", ge=0
    )
    snr_gamma: float = described(
        1.0,
        "weighs states by min(SNR, γ) / SNR in the loss, so that nearly clean ones do not drown the others; 0: equally",
        "signal-to-noise ratio", "ω_T", ge=0,
    )  # fmt: skip
    winner_weight: float = described(
        0.0, "weight of Eq. 9's supervised error on the winner beside the preference loss", "1 / mean squared error",
        "μ", ge=0,
    )  # fmt: skip
    timesteps_per_rollout: int = described(
        4, "timesteps at which every prompt's images are branched and learnt", "timesteps a prompt", "K", ge=1
    )
    selection: Literal["prompt", "timestep", "image"] = described(
        "prompt",
        "one winner and loser a prompt, by the reward over all its timesteps; each timestep its own; or one a prompt, "
        "by the reward of the generated images, whatever their branches predict",
        symbol="τ̂",
    )  # fmt: skip
    latents_per_prompt: int = described(
        0, "clean latents a prompt: 0 for one a branch, 1 as in the paper's text", "latents", "x_0", ge=0
    )
    branch_noise: Literal["shared", "own", "fresh"] = described(
        "shared", "noise of the branches: one for all, each one's sampling noise, or new for each", symbol="ε_i"
    )
    target: Literal["initial", "state"] = described(
        "initial", "noise a state is regressed to: the branch's, or the one its state implies", symbol="ε"
    )
    loss_guidance_scale: float = described(
        1.0, "guidance of the prediction inside the loss; 1 is the conditional one", symbol="w", ge=0
    )
    guidance_in_loss: bool = described(
        False,
        "give the prediction inside the loss the rollouts' guidance: loss_guidance_scale = guidance_scale",
        "switch",
    )

    about: ClassVar[str] = "RLHF trajectory sharpening (arXiv 2502.12146, Algorithm 2)"

    def __post_init__(self) -> None:
        """Check each option alone and the combinations that cannot work.

        Raises:
            OptionError: if an option has a value that cannot work.
        """  # noqa: DOC502
        super().__post_init__()
        require(
            self.timesteps_per_rollout <= self.rollout_steps,
            "timesteps_per_rollout",
            f"must be at most rollout_steps ({self.rollout_steps}); pass fewer",
        )
        require(
            self.branch_steps <= self.rollout_steps,
            "branch_steps",
            f"a branch of {self.branch_steps} steps does not fit into {self.rollout_steps}; pass at most "
            "--rollout_steps",
        )
        require(
            self.latents_per_prompt in (0, 1, self.branches),
            "latents_per_prompt",
            f"must be 0 (one a branch), 1 or the number of branches ({self.branches}); pass one of them",
        )
        require(
            self.latents_per_prompt != 1 or self.branch_noise == "fresh",
            "branch_noise",
            f"{self.branch_noise} with latents_per_prompt 1 makes all branches of a prompt the same; pass fresh",
        )
        require(
            self.latents_per_prompt != 1 or self.selection != "image",
            "selection",
            "image with latents_per_prompt 1 has one image to choose from; pass prompt or timestep",
        )
        require(
            self.loss != "rebel" or self.reward_scale > 0,
            "reward_scale",
            "is 0, so rebel would regress every log ratio to 0; pass a reward_scale above 0",
        )
        require(
            not self.guidance_in_loss or self.loss_guidance_scale in (1.0, self.guidance_scale),
            "guidance_in_loss",
            f"says {self.guidance_scale:g}, but loss_guidance_scale {self.loss_guidance_scale:g}; pass one of the two",
        )

    @property
    def guidance_of_loss(self) -> float:
        """Guidance of the prediction inside the loss."""
        return self.guidance_scale if self.guidance_in_loss else self.loss_guidance_scale

    @property
    def latents(self) -> int:
        """How many x_0 are generated for a prompt."""
        return self.latents_per_prompt or self.branches

    @property
    def groups_per_prompt(self) -> int:
        """One group a timestep."""
        return self.timesteps_per_rollout
