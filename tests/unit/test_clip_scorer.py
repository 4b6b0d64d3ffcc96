import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from sharpening.rewards import load_reward
from sharpening.rewards.clip import ClipScorer, RewardModelError
from sharpening.rewards.preprocessing import Preprocessing
from tests.small_clip import make_clip_folder, make_tokenizer

PROMPTS = ["a red circle", "a blue square left of a green cross", "a dotted triangle", "A RED circle", "zebra"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip_folder(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def scorer(folder: Path) -> ClipScorer:
    return ClipScorer(str(folder))


def random_images(count: int, size: tuple[int, int] = (64, 64), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


def prompts_for(count: int) -> list[str]:
    return [PROMPTS[i % len(PROMPTS)] for i in range(count)]


def test_score_is_open_clips_cosine_times_100(folder: Path, scorer: ClipScorer) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    images, prompts = random_images(5), prompts_for(5)
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.fromarray(image)) for image in images])
        image = model.eval().encode_image(pixels, normalize=True)
        text = model.encode_text(tokenizer(prompts), normalize=True)
    expected = 100 * (image * text).sum(-1).numpy()
    scores = scorer(images, prompts)
    assert scores.values.dtype == np.float32
    assert scores.failures == {}
    np.testing.assert_allclose(scores.values, expected, atol=2e-4)
    assert expected.min() < 0 < expected.max()  # no clamp: this model's scores have both signs


# Prints one line per distinct byte pattern of each image's score, over all slots, neighbours and fills.
INVARIANCE = """
import sys
import numpy as np, torch
torch.set_num_threads(int(sys.argv[2]))
from sharpening.rewards.clip import ClipScorer
scorer = ClipScorer(sys.argv[1])
assert torch.get_num_threads() == int(sys.argv[2]) and scorer.batch_size == 32
rng = np.random.default_rng(1)
image, prompt = rng.integers(0, 256, (64, 64, 3), np.uint8), "a red circle"
seen = {scorer.score(image[None], [prompt]).values.tobytes()}
for slot in range(32):
    batch = rng.integers(0, 256, (32, 64, 64, 3), np.uint8)
    batch[slot] = image
    seen.add(scorer.score(batch, [prompt] * 32).values[slot].tobytes())
pool = rng.integers(0, 256, (64, 64, 64, 3), np.uint8)
prompts = [f"a {'red green blue'.split()[i % 3]} {'circle square'.split()[i % 2]}" for i in range(64)]
alone = np.concatenate([scorer.score(pool[i : i + 1], prompts[i : i + 1]).values for i in range(64)])
fills = [int(count) for count in sys.argv[3].split(",")]
for count in fills:
    some = rng.permutation(64)[:count]
    scores = scorer.score(pool[some], [prompts[i] for i in some]).values
    assert scores.tobytes() == alone[some].tobytes(), count
print(len(seen))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_score_is_the_same_to_the_last_bit_in_every_slot_beside_any_neighbours(folder: Path, threads: int) -> None:
    # A process of its own: the number of threads is fixed once, as in a replica. On 2 threads fewer fills: where the
    # cores are busy, threads wait for one another.
    fills = range(1, 65) if threads == 1 else (1, 2, 7, 31, 32, 33, 50, 64)
    arguments = [sys.executable, "-c", INVARIANCE, str(folder), str(threads), ",".join(map(str, fills))]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1"]


class NeighbourlyScorer(ClipScorer):
    """A machine on which rows of batches larger than 4 depend on what else is in the batch."""

    def _encode_batch(self, batch: np.ndarray) -> np.ndarray:
        embedding = super()._encode_batch(batch)
        return embedding + 1e-12 * batch.mean() if len(batch) > 4 else embedding


def test_batch_size_falls_until_rows_are_independent(folder: Path) -> None:
    scorer = NeighbourlyScorer(str(folder))
    assert scorer.batch_size == 4
    images, prompts = random_images(9), prompts_for(9)
    together = scorer.score(images, prompts).values
    alone = np.concatenate([scorer.score(images[i : i + 1], prompts[i : i + 1]).values for i in range(9)])
    assert together.tobytes() == alone.tobytes()


def test_prompt_is_encoded_alone_and_once(scorer: ClipScorer) -> None:
    image = random_images(1)
    alone = scorer.score(image, ["a green cross"]).values
    among = scorer.score(np.repeat(image, 3, 0), ["a red circle left of a small square", "a green cross", "x"]).values
    assert among[1] == alone[0]
    misses = scorer._text.cache_info().misses
    scorer.score(np.repeat(image, 3, 0), ["a green cross"] * 3)
    assert scorer._text.cache_info().misses == misses


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(96, 130), (40, 64), (128, 128)])
def test_other_sizes_are_resized_as_open_clip_does(folder: Path, mode: str, size: tuple[int, int]) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    model = open_clip.create_model(f"local-dir:{folder}")
    config = model.visual.preprocess_cfg | {"resize_mode": mode, "fill_color": 7}
    image = np.asarray(Image.fromarray(random_images(1, (9, 11))[0]).resize(size[::-1], Image.Resampling.BICUBIC))
    expected = image_transform_v2(PreprocessCfg(**config), is_train=False)(Image.fromarray(image))
    pixels = Preprocessing.of_open_clip(config)(torch.from_numpy(image[None].copy()).permute(0, 3, 1, 2))[0]
    one_level = 1 / 255 / np.array(config["std"]).reshape(3, 1, 1)
    difference = np.abs(pixels.numpy() - expected.numpy())
    assert (difference <= 1.01 * one_level).all()  # PIL's bicubic rounds on its own
    assert (difference > 1e-5).mean() < 0.01


def test_resized_scores_do_not_depend_on_neighbours(scorer: ClipScorer) -> None:
    images, prompts = random_images(7, (96, 80)), prompts_for(7)
    together = scorer.score(images, prompts).values
    for i in (0, 3, 6):
        assert scorer.score(images[i : i + 1], prompts[i : i + 1]).values[0] == together[i]


def test_not_finite_scores_are_failures_of_those_images_alone(folder: Path) -> None:
    scorer = ClipScorer(str(folder))
    images, prompts = random_images(4), prompts_for(4)
    before = scorer.score(images, prompts).values
    token = make_tokenizer().convert_tokens_to_ids("zebra")  # unknown words share one embedding
    with torch.no_grad():
        scorer._model.token_embedding.weight[token] = torch.nan
    after = scorer.score(images, ["a red circle", "a zebra", "a zebra", "A RED circle"])
    assert after.failures == {1: "not finite", 2: "not finite"}
    assert np.isnan(after.values[[1, 2]]).all()
    assert after.values[0] == before[0]
    assert after.values[3] == before[3]


def test_no_images_have_no_scores(scorer: ClipScorer) -> None:
    assert scorer.score(np.zeros((0, 64, 64, 3), np.uint8), []).values.shape == (0,)


@pytest.mark.parametrize(
    ("images", "prompts", "what"),
    [
        (np.zeros((1, 64, 64, 3), np.float32), ["a"], "uint8"),
        (np.zeros((64, 64, 3), np.uint8), ["a"], "shape"),
        (np.zeros((1, 3, 64, 64), np.uint8), ["a"], "shape"),
        (np.zeros((2, 64, 64, 3), np.uint8), ["a"], "2 images"),
        (np.zeros((1, 64, 64, 3), np.uint8), "a", "1 images need a list"),
        (np.zeros((1, 64, 64, 3), np.uint8), [3], "strings"),
    ],
)
def test_requests_that_cannot_be_read_are_refused(
    scorer: ClipScorer, images: object, prompts: object, what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        scorer.score(images, prompts)


def test_damaged_folder_is_one_error_that_names_the_file(folder: Path, tmp_path: Path) -> None:
    import shutil

    def damaged(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    missing = damaged("missing")
    (missing / "open_clip_model.safetensors").unlink()
    with pytest.raises(RewardModelError, match="open_clip_model.safetensors is missing"):
        ClipScorer(str(missing))
    cut = damaged("cut") / "open_clip_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-10])
    with pytest.raises(RewardModelError, match="open_clip_model.safetensors is truncated"):
        ClipScorer(str(cut.parent))
    bare = damaged("bare")
    (bare / "open_clip_config.json").unlink()
    with pytest.raises(RewardModelError, match="open_clip_config.json"):
        ClipScorer(str(bare))
    other = damaged("other")
    config = json.loads((other / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["width"] = 96
    (other / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(RewardModelError, match="other does not load .*size mismatch"):
        ClipScorer(str(other))


def test_unknown_or_weightless_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RewardModelError, match="without weights; pass a checkpoint"):
        ClipScorer("ViT-B-32")
    with pytest.raises(RewardModelError, match="no folder no-such-model; .* an open_clip architecture"):
        ClipScorer("no-such-model")
    with pytest.raises(RewardModelError, match="no folder"):
        ClipScorer(f"local-dir:{tmp_path / 'absent'}")
    with pytest.raises(RewardModelError, match="embedded has weights of its own; leave --reward_checkpoint out"):
        ClipScorer(checkpoint="openai")
    absent = tmp_path / "absent.safetensors"
    with pytest.raises(RewardModelError, match=r"no file .*absent.safetensors"):
        ClipScorer("ViT-B-32", checkpoint=str(absent))


def test_rewards_are_made_by_name(folder: Path) -> None:
    assert isinstance(load_reward("clip", model=str(folder), batch_size=2), ClipScorer)
    with pytest.raises(ValueError, match="unknown reward 'hps'; choose one of clip"):
        load_reward("hps")
    with pytest.raises(ValueError, match="cannot be imported"):
        load_reward("sharpening.rewards.absent:Scorer")
