"""LoRA through a real run: killed processes, the plain loop's curve, and files that diffusers loads without us.

The run is one of IterPO, whose rollout actors and learners go on with more than weights when they are restarted: with
the reward models that it retrains, which are in the checkpoint.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline
from safetensors.torch import load_file

from rayjobs.runtime import checkpoints
from rayjobs.runtime.driver import run
from sharpening.data.source import PromptSource
from sharpening.loop import train_in_process
from sharpening.methods import load_method
from sharpening.policies import load_policy
from sharpening.policies.latent import LatentPolicy
from sharpening.rewards.clip import ClipScorer
from tests import runs
from tests.runs import Models, local_ray, models, served

__all__ = ["local_ray", "models", "served"]  # fixtures

UPDATES = 4


def tiny_vae(folder: Path) -> Path:
    torch.manual_seed(0)
    AutoencoderTiny(
        latent_channels=8, encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def named(saved: str) -> str:
    """The parameter that a name in diffusers' file means."""
    halves = {".lora.down.": ".lora_A.default.", ".lora.up.": ".lora_B.default."}
    for theirs, ours in halves.items():
        saved = saved.removeprefix("unet.").replace(theirs, ours)
    return saved


def draw(pipeline: StableDiffusionXLPipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    images: np.ndarray = pipeline(
        "a red circle", latents=latents, num_inference_steps=4, guidance_scale=1.0, output_type="np"
    ).images
    return images


def test_adapters_survive_killed_processes_and_load_without_us(models: Models, served: str, tmp_path: Path) -> None:
    folder, killed = tmp_path / "run", []
    options = runs.options_of(
        "iterpo", models, folder, rank=4, lora_alpha=8.0, use_ema=True, ema_decay=0.5, gradient_checkpointing=True,
        pretrained_tiny_vae_path=str(tiny_vae(tmp_path / "tiny")), learning_rate=1e-3, max_train_steps=UPDATES,
        num_rollout_actors=1, served_rewards=served,
    )  # fmt: skip
    deeds = [
        (made, lambda title=title: killed.append(runs.kill_process(title)))
        for made, title in ((1, "ray::RolloutActor"), (3, "ray::RayTrainWorker"))
    ]
    saboteur = runs.Saboteur(folder, deeds)
    run(options)
    saboteur.finish()
    assert len(killed) == 2
    runs.check_whole(folder, UPDATES)

    base = load_policy(models.pipeline)
    assert isinstance(base, LatentPolicy)
    policy, threads = base.decode_with(options.pretrained_tiny_vae_path), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = train_in_process(
            policy, load_method("iterpo", options.method_options()), ClipScorer(str(models.clip)),
            PromptSource(runs.PROMPTS), options.training_options(),
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    found = runs.curve(folder)
    for name in ("reward", "loss"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in expected], rel=2e-4)
    assert [row["grad_norm"] for row in found] == pytest.approx([row["grad_norm"] for row in expected], rel=1e-2)

    # Checkpoints hold adapters and their average; the file at the end is that average, as diffusers names it.
    newest = checkpoints.listed(folder / "checkpoints")[-1]
    average, wanted = load_file(newest / "ema.safetensors"), policy.trainable_state()
    raw = torch.load(newest / "engine" / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    assert {f"denoiser.{name}" for name in average} == raw.keys()
    assert average.keys() == wanted.keys()
    moved = max(float(value.abs().max()) for name, value in wanted.items() if "lora_B" in name)
    assert moved > 1e-3
    assert max(float((average[name] - value).abs().max()) for name, value in wanted.items()) < 0.05 * moved
    assert max(float((raw[f"denoiser.{name}"] - value).abs().max()) for name, value in average.items()) > 0.05 * moved
    saved = {named(name): value for name, value in load_file(folder / "pytorch_lora_weights.safetensors").items()}
    assert saved.keys() == average.keys()
    assert all(torch.equal(saved[name], value) for name, value in average.items())
    adapted = StableDiffusionXLPipeline.from_pretrained(models.pipeline)
    before = draw(adapted)
    adapted.load_lora_weights(folder)
    merged = StableDiffusionXLPipeline.from_pretrained(folder / "pipeline")
    np.testing.assert_allclose(draw(adapted), draw(merged), atol=2e-5)
    assert np.abs(draw(merged) - before).max() > 1e-4
