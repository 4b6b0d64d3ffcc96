"""The recipes' arithmetic by hand, docs/recipes.md against it, and the page's commands against the command line."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from rayjobs.command_line import parse
from rayjobs.validation import check_batches
from tests import recipes
from tests.full_size import empty

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```\npython (rayjobs/rlhf\.py .*?)```", PAGE, re.DOTALL)
PENDING: dict[str, int] = {}
"""Flags that the command line does not have yet, and how many words follow; must become empty."""


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_the_page_has_the_computed_tables(name: str) -> None:
    assert "\n".join(recipes.lines(name)) in PAGE


def test_sums_by_hand() -> None:
    recipe = recipes.RECIPES["SDXL full"]
    # 2 567 463 684 weights of 4 bytes, and 12 shared by two learners; and two copies in bf16.
    sizes = recipes.memory(recipe)
    assert sizes["learner: trained"] == 2_567_463_684 * 10
    assert sizes["actor: denoiser"] == 2_567_463_684 * 4
    # The same operations were counted for cluster/capacity/sdxl.yaml.
    operations = recipes.evaluation("SDXL base")[0]
    assert operations / 1e12 == pytest.approx(6.761, abs=5e-4)
    assert recipes.decoding(4)[0] / 1e12 == pytest.approx(10.470, abs=5e-4)
    one = operations / (0.4 * 989.4e12)
    stages = recipes.seconds(recipe)
    assert stages["generate"] == pytest.approx(40 * 3 * 30 * one / 5)
    assert stages["learn"] == pytest.approx(40 * 4 * 2 * 4 * one / 2)
    assert recipes.update_seconds(recipe) == pytest.approx(sum(stages.values()) - stages["learn"])
    # Rank 64 is what cluster/capacity/sdxl_lora.yaml trains.
    assert recipes.adapter_parameters("SDXL base", 64, recipes.ATTENTION) == 92_897_280
    assert "23,224,320" in PAGE
    # SD 3.5 medium: 24 blocks of 8 projections, 1536 × 1536, but the last block's text has no way out.
    assert recipes.adapter_parameters("SD 3.5 medium", 16, recipes.JOINT) == (24 * 8 - 1) * 16 * 2 * 1536


def test_what_is_alive_at_a_time_by_hand() -> None:
    def call() -> None:
        x = empty(10)  # 20 bytes
        y = x + 1  # 40
        z = y.view(2, 5)
        del x, y  # 20: z holds y's storage
        w = z * 2  # 40
        torch.cat([z, w, w])  # 40 + 60
        del w

    assert recipes.peak_live(call) == 100


def test_every_recipe_fits_its_card() -> None:
    for name, recipe in recipes.RECIPES.items():
        sizes = recipes.memory(recipe)
        kinds = ("learner", "actor", "reward")
        parts = [sum(size for what, size in sizes.items() if what.startswith(kind)) for kind in kinds]
        assert (sum(parts) if recipe.shared else max(parts)) < 0.9 * recipe.card.memory, name


@pytest.mark.parametrize(("command", "name"), zip(COMMANDS, ["SDXL LoRA", "SDXL full", "SD3.5 LoRA"], strict=True))
def test_the_commands_are_the_recipes(command: str, name: str) -> None:
    job, *words = shlex.split(command.replace("\\\n", " "))
    assert job == "rayjobs/rlhf.py"
    recipe, kept = recipes.RECIPES[name], []
    known = type(parse([])).model_fields
    told = dict(zip(words, words[1:], strict=False))
    assert int(told.get("--rank", 0)) == recipe.rank
    assert "--gradient_checkpointing" in words
    skip = 0
    for word in words:
        skip = PENDING[word] + 1 if word in PENDING and word[2:] not in known else skip
        kept += [] if skip else [word]
        skip = max(0, skip - 1)
    options = parse(kept)
    check_batches(options)
    found = (
        options.num_rollout_actors, options.num_learners, options.reward_replicas, options.prompts_per_update,
        options.rollout_batch_size, options.rollout_steps, options.method_options().branches,
        options.method_options().timesteps_per_rollout, options.max_train_steps, options.eval_prompts,
        options.validation_prompts, options.validation_steps, bool(options.staleness),
    )  # fmt: skip
    assert found == (
        recipe.actors, recipe.learners, recipe.replicas, recipe.prompts, recipe.batch, recipe.steps, recipe.branches,
        recipe.timesteps, recipe.updates, recipe.judged, recipe.looked, recipe.every, recipe.overlap,
    )  # fmt: skip
    assert (options.train_batch_size, options.guidance_scale, options.method_options().branch_steps) == (1, 1.0, 1)


def test_no_flag_is_pending_that_is_there() -> None:
    there = {name for name in PENDING if name[2:] in type(parse([])).model_fields}
    assert not there, f"take {there} out of PENDING"
