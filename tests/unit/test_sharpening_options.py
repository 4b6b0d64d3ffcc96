"""Options that cannot work are refused where they are made."""

import subprocess
import sys

import pytest

from sharpening.options import OptionError, SharpeningOptions, TrainingOptions


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("branches", 1),
        ("branch_steps", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("beta", 0.0),
        ("beta", -1.0),
        ("beta", float("inf")),
        ("reward_scale", float("nan")),
        ("guidance_scale", -1.0),
        ("loss_guidance_scale", float("nan")),
        ("rollout_steps", 0),
        ("timesteps_per_rollout", 21),
        ("timesteps_per_rollout", 0),
        ("loss", "ppo"),
        ("branch_noise", "none"),
        ("target", "x0"),
        ("rollout_precision", "int8"),
        ("latents_per_prompt", 2),
    ],
)
def test_sharpening_options_are_checked(option, value):
    with pytest.raises(OptionError) as caught:
        SharpeningOptions(**{option: value})
    assert caught.value.option == option
    assert str(caught.value).startswith(f"{option}: ")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("updates", 0),
        ("prompts_per_update", 0),
        ("rollout_batch_size", 0),
        ("train_batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("max_grad_norm", -1.0),
        ("lr_warmup_steps", -1),
        ("adam_beta1", 1.0),
        ("adam_weight_decay", -0.1),
        ("max_failed_share", 1.0),
    ],
)
def test_training_options_are_checked(option, value):
    with pytest.raises(OptionError) as caught:
        TrainingOptions(**{option: value})
    assert caught.value.option == option


def test_combinations_are_checked():
    with pytest.raises(OptionError, match="reward_scale"):
        SharpeningOptions(loss="rebel")
    for branch_noise in ("shared", "own"):
        with pytest.raises(OptionError, match="fresh"):
            SharpeningOptions(latents_per_prompt=1, branch_noise=branch_noise)
    assert SharpeningOptions(latents_per_prompt=1, branch_noise="fresh").latents == 1
    assert SharpeningOptions(branches=6).latents == 6


def test_options_and_prompts_need_no_torch():
    """Command lines read both before anything heavy is imported."""
    code = (
        "import sys, sharpening.options, sharpening.data.prompts, sharpening.policies; "
        "print([name for name in ('torch', 'diffusers', 'transformers', 'ray') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_guidance_in_the_loss_is_the_rollouts():
    assert SharpeningOptions(guidance_scale=3.0).guidance_of_loss == 1.0
    assert SharpeningOptions(guidance_scale=3.0, loss_guidance_scale=2.0).guidance_of_loss == 2.0
    assert SharpeningOptions(guidance_scale=3.0, guidance_in_loss=True).guidance_of_loss == 3.0
    with pytest.raises(OptionError, match="guidance_in_loss: says 3, but loss_guidance_scale 2; pass one of the two"):
        SharpeningOptions(guidance_scale=3.0, loss_guidance_scale=2.0, guidance_in_loss=True)
