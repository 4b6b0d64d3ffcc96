"""Preference pairs made once with the base model and ranked by a reward."""

import numpy as np
import pytest
import torch

from sharpening.data.pairs import PairFile, write_pairs
from sharpening.methods.base import Seeds
from sharpening.methods.ranking import rank_pairs
from sharpening.options.dpo import DPOOptions
from sharpening.rewards.base import Scores
from sharpening.sampling import sample
from sharpening.seeds import noise

PROMPTS = ["a red circle", "two squares", "a cross", "a triangle, 3"]
OPTIONS = DPOOptions(rollout_steps=4)


def rank(policy, score, slots=(3, 4, 5, 6), samples=3):
    return rank_pairs(policy, score, [PROMPTS[slot - 3] for slot in slots], Seeds(11, 2, slots), samples, OPTIONS)


def test_best_and_worst_of_the_models_own_images(policy, brightness):
    pairs = rank(policy, brightness)
    assert pairs.nfe == policy.nfe == 4 * 3 * 4
    assert pairs.images_scored == 12
    assert set(pairs.seconds) == {"generate", "decode", "reward"}
    assert (pairs.slots, pairs.batch.prompts, pairs.ties, pairs.dropped) == ([3, 4, 5, 6], PROMPTS, [], [])
    for b, prompt in enumerate(PROMPTS):
        draws = torch.stack([noise((8, 8, 8), 11, "ranking", 2, 3 + b, k) for k in range(3)])
        images = policy.decode(sample(policy, policy.encode([prompt] * 3), draws, 4))
        rewards = brightness(images, [prompt] * 3).values
        assert pairs.rewards[b].tolist() == pytest.approx([rewards.max(), rewards.min()], abs=0.01)
        found = pairs.batch.images[b].astype(int)
        # Another batch size moves a rounding by one level at most.
        assert np.abs(found[0] - images[rewards.argmax()]).max() <= 1
        assert np.abs(found[1] - images[rewards.argmin()]).max() <= 1


def test_a_failure_and_a_tie_drop_their_prompts_alone(policy, brightness):
    def score(images, prompts):
        scores = brightness(images, prompts)
        scores.values[3:6] = 7.0  # a tie
        return Scores(scores.values, {7: "timeout", 8: "rejected"})

    whole, pairs = rank(policy, brightness), rank(policy, score)
    assert pairs.dropped == [(5, "timeout")]
    assert pairs.ties == [4]
    assert pairs.slots == [3, 6]
    assert pairs.batch.prompts == [PROMPTS[0], PROMPTS[3]]
    assert np.array_equal(pairs.batch.images, whole.batch.images[[0, 3]])
    assert np.array_equal(pairs.rewards, whole.rewards[[0, 3]])


def test_nothing_may_be_left(policy):
    pairs = rank(policy, lambda images, prompts: Scores(np.full(len(images), np.nan, np.float32)))
    assert pairs.dropped == [(slot, "not finite") for slot in (3, 4, 5, 6)]
    assert pairs.batch.images.shape == (0, 2, 64, 64, 3)
    assert list(pairs.rows()) == []


def test_pieces_rank_as_the_whole(policy, brightness):
    whole, pieces = rank(policy, brightness), [rank(policy, brightness, slots=(slot,)) for slot in (3, 4, 5, 6)]
    images = np.concatenate([piece.batch.images for piece in pieces])
    assert np.abs(whole.batch.images.astype(int) - images).max() <= 1
    np.testing.assert_allclose(whole.rewards, np.concatenate([piece.rewards for piece in pieces]), atol=0.01)


def test_rows_are_a_pair_file(policy, brightness, tmp_path):
    pairs = rank(policy, brightness)
    write_pairs(tmp_path / "pairs.parquet", pairs.rows())
    read = PairFile(tmp_path / "pairs.parquet", "caption", 64).batch([2, 0])
    assert read.prompts == [PROMPTS[2], PROMPTS[0]]
    assert np.array_equal(read.images, pairs.batch.images[[2, 0]])


def test_one_image_makes_no_pair(policy, brightness):
    with pytest.raises(ValueError, match="2 or more"):
        rank(policy, brightness, samples=1)
    with pytest.raises(ValueError, match="3 slots"):
        rank_pairs(policy, brightness, PROMPTS, Seeds(0, 0, (0, 1, 2)), 2, OPTIONS)
