"""Guidance distillation: states and targets against diffusers' own guided sampling, the loss by hand, the account."""

from dataclasses import replace

import pytest
import torch

from sharpening.data.source import Batch, PromptSource
from sharpening.loop import train_in_process
from sharpening.methods import METHODS, load_method, options_class
from sharpening.methods.base import Seeds
from sharpening.methods.guidance_distillation import GuidanceDistillation
from sharpening.options import OptionError, TrainingOptions
from sharpening.options.guidance_distillation import GuidanceDistillationOptions
from sharpening.seeds import noise

PROMPTS = ["a red circle", "two squares", "a cross", "a triangle, 3"]
OPTIONS = GuidanceDistillationOptions(rollout_steps=6, timesteps_per_rollout=3, teacher_guidance_scale=2.5)


def unasked(images, prompts):
    raise AssertionError("the reward was asked")


def collect(policy, options=OPTIONS, slots=(0, 1, 2, 3)):
    batch = Batch.of_prompts([PROMPTS[slot] for slot in slots])
    return GuidanceDistillation(options).collect(policy, policy, unasked, batch, Seeds(11, 5, slots))


def test_registered_with_its_options():
    assert METHODS["guidance_distillation"][0].endswith("GuidanceDistillation")
    assert isinstance(load_method("guidance_distillation"), GuidanceDistillation)
    options = options_class("guidance_distillation")()
    assert (options.data, options.rewarded, options.groups_per_prompt) == ("prompts", False, 12)
    assert options.guidance_scale == 1.0  # what the student is looked at and reported with
    groups = options.training.prompts_per_update * options.groups_per_prompt
    assert groups % (options.training.inner_steps * options.training.train_batch_size) == 0


def test_states_and_targets_are_the_guided_pipelines(policy):
    """Every state of the walk is a latent that the pipeline passes through, and its target the noise it removes."""
    experience = collect(policy, replace(OPTIONS, timesteps_per_rollout=6))
    pipeline = policy.pipeline()
    passed: list[torch.Tensor] = []

    def keep(pipe, step, timestep, tensors):
        passed.append(tensors["latents"])
        return tensors

    starts = torch.stack([noise((8, 8, 8), 11, "latent", 5, slot, 0) for slot in range(4)])
    for slot, prompt in enumerate(PROMPTS):
        passed.clear()
        pipeline(prompt, latents=starts[[slot]], num_inference_steps=6, guidance_scale=2.5, output_type="latent",
                 callback_on_step_end=keep)  # fmt: skip
        rows = (experience.group_prompt == slot).nonzero()[:, 0]
        assert len(rows) == 6
        torch.testing.assert_close(experience.x_t[rows[0], 0, 0], starts[slot])
        torch.testing.assert_close(experience.x_t[rows[1:], 0, 0], torch.cat(passed[:-1]), atol=1e-4, rtol=1e-4)
        t = experience.timesteps[rows[-1]]
        x = experience.x_t[rows[-1], 0]
        alpha, sigma = policy.schedule.alpha(t), policy.schedule.sigma(t)
        x0 = (x - sigma * experience.target[rows[-1], 0]) / alpha
        end = policy.step(x, t, policy.previous(t, 6), type("P", (), {"x0": x0, "eps": experience.target[rows[-1], 0]}))
        torch.testing.assert_close(end.float(), passed[-1], atol=1e-4, rtol=1e-4)


def test_kept_states_are_stratified_over_the_walk(policy):
    whole, some = collect(policy, replace(OPTIONS, timesteps_per_rollout=6)), collect(policy)
    grid = policy.timesteps(6)
    for group in range(12):
        place = int((grid == some.timesteps[group]).nonzero())
        assert place // 2 == group % 3
        torch.testing.assert_close(some.x_t[group], whole.x_t[6 * (group // 3) + place])
        torch.testing.assert_close(some.target[group], whole.target[6 * (group // 3) + place])


def test_account(policy):
    experience = collect(policy)
    assert experience.nfe == 4 * 6 * 2
    assert (experience.images_scored, experience.dropped, set(experience.seconds)) == (0, [], {"generate"})


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_loss_by_hand(policy, gamma):
    experience = collect(policy)
    found = GuidanceDistillation(replace(OPTIONS, snr_gamma=gamma)).loss(policy, experience)
    expected = []
    for g in range(experience.groups):
        condition = experience.condition.index([int(experience.group_prompt[g])])
        x, t = experience.x_t[g, 0], experience.timesteps[g]
        own = policy.predict(x, t, condition).eps
        empty = policy.predict(x, t, policy.uncondition(1)).eps
        snr = float(policy.snr(t))
        weight = min(snr, gamma) / snr if gamma else 1.0
        expected.append(weight * (own - (empty + 2.5 * (own - empty))).square().mean())
    assert found.value.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)
    assert found.value.requires_grad


def test_the_student_comes_nearer_to_its_guided_teacher(policy):
    strong = replace(OPTIONS, teacher_guidance_scale=8.0)
    training = TrainingOptions(
        updates=24, prompts_per_update=4, rollout_batch_size=4, train_batch_size=12, learning_rate=2e-4,
        lr_scheduler="constant",
    )  # fmt: skip
    history = train_in_process(policy, GuidanceDistillation(strong), unasked, PromptSource(PROMPTS), training)
    assert sum(row["error"] for row in history[-8:]) / 8 < 0.6 * history[0]["error"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_guidance_scale": 1.0}, "teacher_guidance_scale: must be greater than 1"),
        ({"timesteps_per_rollout": 13}, "timesteps_per_rollout: must be at most rollout_steps"),
    ],
)
def test_wrong_options_are_refused(changes, message):
    with pytest.raises(OptionError, match=message):
        GuidanceDistillationOptions(**changes)
