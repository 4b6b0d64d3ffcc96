"""Flags of LoRA, precision and memory: what cannot work is refused in one sentence, before anything heavy starts."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
from safetensors.numpy import save_file

from rayjobs.command_line import parse
from rayjobs.errors import OptionError
from rayjobs.options import options_class
from rayjobs.validation import check_memory_savers, validate
from tests.unit.test_bad_input import error, good, models

__all__ = ["error", "good", "models"]  # fixtures


@pytest.fixture
def tiny(tmp_path):
    """A folder that looks like a tiny VAE to the checks."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    save_file({"w": np.zeros(4, np.float32)}, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("argv", "option", "words"),
    [
        (["--rank", "-1"], "rank", "must be at least 0"),
        (["--lora_alpha", "8"], "lora_alpha", "nothing is; pass --rank 16"),
        (["--lora_target_modules", "to_q"], "lora_target_modules", "nothing is; pass --rank 16"),
        (["--rank", "4", "--lora_alpha", "0"], "lora_alpha", "greater than 0"),
        (["--rank", "4", "--lora_target_modules", "w,to_w"], "lora_target_modules", "ends in 'to_w'; pass names"),
        (["--ema_decay", "1"], "ema_decay", "must be less than 1"),
        (["--mixed_precision", "fp16"], "mixed_precision", "choose one of no, bf16"),
        (["--pretrained_tiny_vae_path", "absent"], "pretrained_tiny_vae_path", "there is no folder absent"),
        (["--guidance_in_loss", "--loss_guidance_scale", "3"], "guidance_in_loss", "pass one of the two"),
    ],
)
def test_what_cannot_work_is_refused(error, argv, option, words):
    found, reason = error(*argv)
    assert found == option
    assert words in reason


def test_what_can_work_is_taken(good, tiny):
    argv = ["--rank", "4", "--lora_target_modules", "w", "--mixed_precision", "bf16", "--gradient_checkpointing"]
    argv += ["--pretrained_tiny_vae_path", str(tiny), "--use_ema", "--guidance_in_loss", "--guidance_scale", "3"]
    assert validate(parse([*good, *argv])).rank == 4


def test_another_model_is_no_tiny_vae(error, models, tiny):
    folder = models / "pipeline" / "vae"
    option, reason = error("--pretrained_tiny_vae_path", folder)
    assert option == "pretrained_tiny_vae_path"
    assert "no AutoencoderTiny" in reason
    (tiny / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
    assert error("--pretrained_tiny_vae_path", tiny)[0] == "pretrained_tiny_vae_path"


def test_a_vae_in_place_of_the_pipelines_own_has_its_latents(good, error, models, tiny):
    name = "--pretrained_vae_model_name_or_path"
    vae = str(models / "pipeline" / "vae")
    assert validate(parse([*good, name, vae])).pretrained_vae_model_name_or_path == vae
    assert "there is no folder absent" in error(name, "absent")[1]
    assert "no AutoencoderKL" in error(name, tiny)[1]
    (tiny / "config.json").write_text(json.dumps({"latent_channels": 16, "block_out_channels": [1, 2, 3, 4]}))
    option, reason = error(name, tiny)
    assert option == name[2:]
    assert "16 channels at 1/8 of the pixels, but the model's have 4 at 1/8; pass a VAE that was made" in reason


@pytest.mark.parametrize("method", ["ddpo", "d3po"])
def test_probabilities_of_steps_are_not_compared_in_bf16(method):
    options = options_class(method)(mixed_precision="bf16")
    with pytest.raises(OptionError, match=f"--mixed_precision: {method} compares probabilities of single steps"):
        check_memory_savers(options, "cpu", 1)
    check_memory_savers(options.model_copy(update={"mixed_precision": "no"}), "cpu", 1)


def test_compiling_needs_a_compiler_and_whole_weights(error, tmp_path, monkeypatch):
    config = tmp_path / "zero3.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    compiler = tmp_path / "c++"
    compiler.write_text("")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    option, reason = error("--torch_compile", "--deepspeed_config", config)
    assert option == "torch_compile"
    assert "ZeRO 3 gathers weights between layers" in reason
    compiler.unlink()
    assert "no C++ compiler here (c++, g++, clang++)" in error("--torch_compile")[1]


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_moments_of_8_bit_need_their_library(error):
    option, reason = error("--use_8bit_adam")
    assert option == "use_8bit_adam"
    assert "bitsandbytes is not installed; pip install bitsandbytes" in reason
