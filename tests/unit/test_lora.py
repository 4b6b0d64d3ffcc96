"""LoRA, averages of weights, gradient checkpointing and tiny VAEs, on small models of every family."""

import json
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from rayjobs.command_line import parse
from rayjobs.runtime.publishing import publish
from sharpening.data.source import Batch, PromptSource
from sharpening.ema import WeightAverage
from sharpening.loop import train_in_process
from sharpening.methods.base import Seeds
from sharpening.methods.rlhf import RLHFSharpening
from sharpening.options import OptionError, SharpeningOptions, TrainingOptions
from sharpening.policies import load_policy
from sharpening.prepare import prepare
from sharpening.sampling import sample
from tests import tiny_pipelines
from tests.conftest import fresh_policy
from tests.tiny_pipelines import CHANNELS, SIDE
from tests.unit.test_families import call_arguments
from tests.unit.test_publishing import finished_run

NAMES = ["sd-epsilon", "sd-v", "sdxl", "sd3", "flux-dev", "flux-schnell", "pixart"]
SCALES = {"flux-dev": 3.5, "flux-schnell": 1.0}
"""Guidance that a family is drawn with, where it is not 2."""
SHAPE = (CHANNELS, SIDE, SIDE)
ADAPTED = TrainingOptions(rank=4, lora_alpha=8.0, seed=3)
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One pipeline folder a name; do not change them."""
    root = tmp_path_factory.mktemp("adapted")
    for name in NAMES:
        tiny_pipelines.build(name).save_pretrained(root / name)
    return {name: root / name for name in NAMES}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def policy(folders, name):
    return fresh_policy(folders[name])


def adapted(folder, options=ADAPTED):
    policy = load_policy(folder)
    prepare(policy, options, learns=True)
    return policy


def shaken(policy, size=0.05):
    """Adapters that change something."""
    generator = torch.Generator().manual_seed(1)
    state = policy.trainable_state()
    noisy = {n: v + size * torch.randn(v.shape, generator=generator) for n, v in state.items()}
    policy.load_trainable_state(noisy)
    return policy


def draw(batch=1, seed=0):
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed))


def predicted(policy, guidance_scale=1.0):
    x_t, t = draw(2), policy.timesteps(4)[torch.tensor([0, 2])]
    return policy.predict(x_t, t, policy.encode([PROMPT, ""]), guidance_scale).eps


# -- LoRA ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_adapters_are_all_that_moves_and_the_reference_is_the_model_without_them(folders, name):
    base, policy = load_policy(folders[name]), adapted(folders[name])
    reference = policy.frozen_copy()
    assert reference.denoiser is policy.denoiser
    assert torch.equal(predicted(policy), predicted(base))
    shaken(policy)
    assert (predicted(policy) - predicted(base)).abs().max() > 1e-3
    assert torch.equal(predicted(reference), predicted(base))
    assert reference.nfe == 2
    trained = policy.trainable()
    asking = [p for p in policy.denoiser.parameters() if p.requires_grad]
    assert {id(p) for p in asking} == {id(p) for p in trained}
    projections = sum(isinstance(m, torch.nn.Linear) and m.in_features == 4 for m in policy.denoiser.modules())
    assert len(trained) == 2 * projections > 0
    # Version 0 of the weights, as a rollout actor without another copy has it.
    policy.load_trainable_state(reference.trainable_state())
    assert torch.equal(predicted(policy), predicted(base))


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_snapshots_hold_the_adapters_alone_and_every_process_begins_alike(folders, name):
    first, second = adapted(folders[name]), adapted(folders[name])
    torch.rand(7)
    start = first.trainable_state()
    assert all(".lora_" in key for key in start)
    assert all(torch.equal(value, second.trainable_state()[key]) for key, value in start.items())
    assert sum(value.abs().sum() for key, value in start.items() if "lora_A" in key) > 0
    other = adapted(folders[name], TrainingOptions(rank=4, seed=4)).trainable_state()
    assert any(not torch.equal(value, other[key]) for key, value in start.items())
    shaken(first)
    second.load_trainable_state(first.trainable_state())
    with torch.no_grad():
        assert torch.equal(predicted(first), predicted(second))
        with pytest.raises(ValueError, match="a reference shares its denoiser"):
            first.frozen_copy().load_trainable_state(start)
    with pytest.raises(ValueError, match="of another .*: missing"):
        load_policy(folders[name]).load_trainable_state(start)


def test_an_adapter_is_its_formula(folders):
    policy = shaken(adapted(folders["sdxl"]))
    state = policy.trainable_state()
    layer = policy.denoiser.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    prefix = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    a, b = (state[f"{prefix}.lora_{half}.default.weight"] for half in "AB")
    x = torch.randn(3, a.shape[1])
    expected = x @ layer.base_layer.weight.T + 8 / 4 * (x @ a.T) @ b.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


LOADER = """
import json, sys
import numpy as np, torch
from diffusers import DiffusionPipeline

def draw(pipeline, arguments):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline("a red circle", output_type="np", **arguments).images

for name, arguments in json.loads(sys.argv[1]).items():
    arguments["latents"] = torch.from_numpy(np.load(f"{name}.noise.npy"))
    merged = DiffusionPipeline.from_pretrained(f"{name}/pipeline")
    pipeline = DiffusionPipeline.from_pretrained(arguments.pop("base"))
    pipeline.scheduler = merged.scheduler
    if hasattr(pipeline, "load_lora_weights"):
        pipeline.load_lora_weights(name)
    else:
        from peft import PeftModel
        pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, name).base_model.model
    np.savez(f"{name}.images.npz", lora=draw(pipeline, arguments), merged=draw(merged, arguments))
assert not [module for module in sys.modules if module.startswith("sharpening")]
"""


def test_saved_adapters_and_merged_models_draw_the_same_without_us(folders, tmp_path):
    calls, ours = {}, {}
    for name in NAMES:
        policy = shaken(adapted(folders[name]), 0.2)
        before = policy.trainable_state()
        policy.save_pretrained(tmp_path / name / "pipeline")
        policy.save_adapter(tmp_path / name)
        assert all(torch.equal(value, before[key]) for key, value in policy.trainable_state().items())
        scale = SCALES.get(name, 2.0)
        calls[name] = {"num_inference_steps": 4, "guidance_scale": scale, "base": str(folders[name])}
        calls[name] |= call_arguments(name, draw())
        np.save(tmp_path / f"{name}.noise.npy", calls[name].pop("latents").numpy())
        ours[name] = [
            model.decode(sample(model, model.encode([PROMPT]), draw(), 4, scale))
            for model in (policy, load_policy(folders[name]))
        ]
    assert (tmp_path / "sdxl" / "pytorch_lora_weights.safetensors").is_file()
    environment = {"PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOADER, json.dumps(calls)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name, (mine, base) in ours.items():
        theirs = np.load(tmp_path / f"{name}.images.npz")
        assert np.abs(mine - np.round(theirs["lora"] * 255)).max() <= 1, name
        assert np.abs(mine - np.round(theirs["merged"] * 255)).max() <= 1, name
        assert np.abs(base.astype(int) - mine).max() > 1, name  # the adapters do something


def test_the_code_on_a_card_loads_adapters_that_diffusers_cannot(folders, tmp_path, monkeypatch):
    asked = parse(["--pretrained_model_name_or_path", str(folders["pixart"]), "--rank", "4"])
    folder = finished_run(tmp_path / "rlhf-pixart", asked)
    policy = shaken(adapted(folders["pixart"]), 0.2)
    policy.save_pretrained(folder.pipeline)
    policy.save_adapter(folder.path)
    publish(folder, asked.model_copy(update={"output_dir": str(folder.path)}), asked, pytest.fail)
    code = re.search(r"```python\n(.*?)\n```", (folder.pipeline / "README.md").read_text(), re.DOTALL)[1]
    loading, drawing = code.rsplit("\n\n", 1)
    assert drawing == 'image = pipeline("a red circle").images[0]'
    merged, adapters = loading.split("\n\n# or the adapters alone, on the base model\n")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / folder.path.name).symlink_to(folder.pipeline)  # the name that the hub would know it by
    monkeypatch.chdir(tmp_path / "hub")
    images = {}
    for kind, lines in {"merged": merged, "adapters": f"{merged}\n{adapters}", "base": ""}.items():
        names = {"pipeline": load_policy(folders["pixart"]).pipeline()}
        exec(lines, names)
        names["pipeline"].scheduler = policy.make_scheduler()
        names["pipeline"].set_progress_bar_config(disable=True)
        arguments = {"num_inference_steps": 4, "guidance_scale": 2.0} | call_arguments("pixart", draw())
        images[kind] = names["pipeline"](PROMPT, output_type="np", **arguments).images * 255
    assert np.abs(images["merged"] - images["adapters"]).max() < 1
    assert np.abs(images["base"] - images["adapters"]).max() > 1


def test_targets_that_are_not_there_are_refused(folders):
    with pytest.raises(ValueError, match="UNet2DConditionModel has no layer whose name ends in 'to_w'"):
        adapted(folders["sdxl"], TrainingOptions(rank=4, lora_target_modules=("to_q", "to_w")))
    policy = adapted(folders["sdxl"], TrainingOptions(rank=4, lora_target_modules=("to_v",)))
    assert all(".to_v." in key for key in policy.trainable_state())
    for option, value in (("lora_alpha", 4.0), ("lora_target_modules", ("to_q",)), ("rank", -1), ("ema_decay", 1.0)):
        with pytest.raises(OptionError, match=option):
            TrainingOptions(**{option: value})


def note(counted, module, args, kwargs):
    counted.append(module)


# -- learning --------------------------------------------------------------------------------------------------------


def gradients(policy, brightness):
    method = RLHFSharpening(SharpeningOptions(branches=2, rollout_steps=4))
    batch = Batch.of_prompts([PROMPT, "two"])
    experience = method.collect(policy, policy.frozen_copy(), brightness, batch, Seeds(0, 0, (0, 1)))
    trained = policy.trainable()
    method.loss(policy, experience).value.backward()
    return torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None])


@pytest.mark.parametrize("rank", [0, 4])
def test_checkpointed_gradients_are_the_gradients(folders, name, brightness, rank):
    found = {}
    for checkpointed in (False, True):
        policy = load_policy(folders[name])
        prepare(policy, TrainingOptions(rank=rank, gradient_checkpointing=checkpointed), learns=True)
        blocks, counted = [m for m in policy.denoiser.modules() if type(m).__name__.endswith("TransformerBlock")], []
        blocks[-1].register_forward_pre_hook(partial(note, counted), with_kwargs=True)
        found[checkpointed] = gradients(policy, brightness), len(counted)
    torch.testing.assert_close(found[True][0], found[False][0], rtol=1e-5, atol=1e-7)
    assert found[True][1] == found[False][1] + 1  # the backward pass came by again
    assert found[True][0].abs().max() > 0


def train(policy, brightness, **options):
    method = RLHFSharpening(SharpeningOptions(branches=2, rollout_steps=4))
    training = TrainingOptions(
        updates=3, prompts_per_update=2, rollout_batch_size=2, train_batch_size=8, learning_rate=1e-2, **options
    )
    states = []
    history = train_in_process(
        policy, method, brightness, PromptSource([PROMPT, "two", "cube"]), training,
        on_update=lambda update, metrics: states.append(policy.trainable_state()),
    )  # fmt: skip
    return history, states


def test_the_plain_loop_trains_adapters_and_leaves_the_model_alone(folders, brightness):
    policy, base = load_policy(folders["sdxl"]), load_policy(folders["sdxl"])
    history, states = train(policy, brightness, rank=4)
    assert len({row["loss"] for row in history}) == 3
    assert any((states[-1][key] - states[0][key]).abs().max() > 1e-3 for key in states[0])
    own = base.denoiser.state_dict()
    kept = {k.replace(".base_layer.", "."): v for k, v in policy.denoiser.state_dict().items() if ".lora_" not in k}
    assert kept.keys() == own.keys()
    assert all(torch.equal(kept[key], value) for key, value in own.items())


def test_the_average_is_its_formula_and_the_model_ends_with_it(folders, brightness, tmp_path):
    policy = load_policy(folders["sdxl"])
    _, states = train(policy, brightness, rank=4, use_ema=True, ema_decay=0.15)
    plain, same = train(load_policy(folders["sdxl"]), brightness, rank=4)
    for key, value in policy.trainable_state().items():
        assert torch.equal(states[-1][key], same[-1][key])  # rollouts and learning use the raw weights
        average = states[0][key]  # decay 0, then (1 + 1) / (10 + 1) cut to 0.15, then 0.15
        for state in states[1:]:
            average = 0.15 * average + 0.85 * state[key]
        torch.testing.assert_close(value, average)
    assert any((policy.trainable_state()[key] - states[-1][key]).abs().max() > 1e-4 for key in same[0])
    kept = WeightAverage(states[0], 0.9)
    for state in states[:2]:
        kept.step(state)
    kept.save(tmp_path / "ema.safetensors")
    again = WeightAverage.load(tmp_path / "ema.safetensors", 0.9)
    assert again.steps == kept.steps == 2
    for average in (kept, again):
        average.step(states[2])
    assert all(torch.equal(value, again.state()[key]) for key, value in kept.state().items())
    key = next(iter(same[0]))
    second = states[1][key] * 9 / 11 + states[0][key] * 2 / 11  # d = 2/11 after the second update, 3/12 after the third
    torch.testing.assert_close(kept.state()[key], second * 3 / 12 + states[2][key] * 9 / 12)


# -- tiny VAEs -------------------------------------------------------------------------------------------------------


def tiny_vae(folder, **config):
    torch.manual_seed(0)
    AutoencoderTiny(
        latent_channels=CHANNELS, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), **config,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.mark.parametrize("name", ["sd-epsilon", "sdxl", "sd3", "flux-dev", "pixart"])
def test_a_tiny_vae_draws_what_the_pipeline_draws_with_it(folders, name, tmp_path):
    shift = 0.4 if name in ("sd3", "flux-dev") else 0.0  # their pipelines alone shift latents
    folder = tiny_vae(tmp_path / "tiny", scaling_factor=0.6, shift_factor=shift)
    policy = load_policy(folders[name])
    quick, scale = policy.decode_with(folder), SCALES.get(name, 2.0)
    pipeline = policy.pipeline()
    pipeline.vae = AutoencoderTiny.from_pretrained(folder)
    arguments = {"num_inference_steps": 2, "guidance_scale": scale} | call_arguments(name, draw(2))
    expected = pipeline([PROMPT, "two"], output_type="np", **arguments).images
    latents = sample(policy, policy.encode([PROMPT, "two"]), draw(2), 2, scale)
    assert np.abs(quick.decode(latents) - np.round(expected * 255)).max() <= 1
    assert expected.std() > 0.02  # no flat image
    exact = quick.decode_with(None)
    assert np.array_equal(exact.decode(latents), policy.decode(latents))
    assert np.abs(exact.decode(latents).astype(int) - quick.decode(latents)).max() > 1
    assert quick.denoiser is policy.denoiser


def test_a_tiny_vae_for_other_latents_is_refused(folders, tmp_path):
    policy = load_policy(folders["sdxl"])
    other = AutoencoderTiny(latent_channels=CHANNELS)  # at an eighth of the pixels
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="has 4 channels at 1/8 of the pixels"):
        policy.decode_with(tmp_path / "other")
