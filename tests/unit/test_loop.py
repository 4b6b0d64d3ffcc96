"""The in-process loop, and the pure functions that any runtime assembles an update from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.optimization import get_scheduler

from sharpening.data.source import Batch, PromptSource
from sharpening.learning_rate import learning_rate_at
from sharpening.loop import learn, train_in_process
from sharpening.methods.base import Experience, Seeds
from sharpening.methods.rlhf import RLHFSharpening
from sharpening.options import OptionError, SharpeningOptions, TrainingOptions
from sharpening.rewards.base import RewardUnavailable, Scores
from sharpening.slots import TooManyFailures, check_failures, refill_slots, slots_of_update, tasks
from sharpening.updates import (
    NonFiniteLoss,
    collect_update,
    mean_metrics,
    micro_batches,
)

PROMPTS = ["a circle", "two squares", "a cross", "a triangle", "b", "c"]
SHARPENING = SharpeningOptions(branches=3, branch_steps=2, rollout_steps=4, timesteps_per_rollout=2)
TRAINING = TrainingOptions(updates=2, prompts_per_update=4, rollout_batch_size=2, train_batch_size=3, seed=1)


def train(policy, score, training=TRAINING, sharpening=SHARPENING, on_update=None):
    return train_in_process(policy, RLHFSharpening(sharpening), score, PromptSource(PROMPTS), training, on_update)


def collected(policy, score):
    method = RLHFSharpening(SHARPENING)
    batch = Batch.of_prompts(PROMPTS[:4])
    return method, method.collect(policy, policy.frozen_copy(), score, batch, Seeds(0, 0, (0, 1, 2, 3)))


def timeless(history):
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in history]


def test_slots_and_tasks():
    assert slots_of_update(5) == (0, 1, 2, 3, 4)
    assert tasks(slots_of_update(5), 2) == [(0, 1), (2, 3), (4,)]
    assert tasks((), 2) == []
    assert refill_slots(5, 2) == (5, 6)


@pytest.mark.parametrize(
    ("scheduler", "warmup", "expected"),
    [
        ("constant", 0, [1.0, 1.0, 1.0, 1.0]),
        ("constant_with_warmup", 2, [0.5, 1.0, 1.0, 1.0]),
        ("linear", 2, [0.5, 1.0, 1.0, 0.5]),
        ("cosine", 2, [0.5, 1.0, 1.0, 0.5]),
        ("cosine", 0, [1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
    ],
)
def test_learning_rates(scheduler, warmup, expected):
    options = TrainingOptions(updates=4, learning_rate=1.0, lr_scheduler=scheduler, lr_warmup_steps=warmup)
    assert [learning_rate_at(update, options) for update in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        ("linear", {}), ("cosine", {}), ("cosine_with_restarts", {}), ("cosine_with_restarts", {"num_cycles": 3}),
        ("polynomial", {}), ("polynomial", {"power": 2.0}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_are_those_of_diffusers(scheduler, told, warmup):
    """After the warm-up, in which ours is one update ahead: diffusers' first update learns nothing."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = get_scheduler(scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=20, **told)
    ours = TrainingOptions(
        updates=20, learning_rate=1e-3, lr_scheduler=scheduler, lr_warmup_steps=warmup,
        **{f"lr_{name}": value for name, value in told.items()},
    )  # fmt: skip
    for update in range(20):
        if update >= warmup:
            assert learning_rate_at(update, ours) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("told", "option"),
    [
        ({"lr_scheduler": "step"}, "lr_scheduler"),
        ({"lr_num_cycles": 2}, "lr_num_cycles"),
        ({"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 0}, "lr_num_cycles"),
        ({"lr_power": 2.0}, "lr_power"),
        ({"lr_scheduler": "polynomial", "lr_power": 0.0}, "lr_power"),
        ({"lr_scheduler": "polynomial", "learning_rate": 1e-8}, "learning_rate"),
    ],
)
def test_schedules_that_cannot_be_are_refused(told, option):
    with pytest.raises(OptionError) as caught:
        TrainingOptions(**told)
    assert caught.value.option == option


def test_metrics_are_weighted_means():
    parts = [({"loss": 1.0, "gap": 4.0}, 0.75), ({"loss": 3.0, "gap": 0.0}, 0.25), ({"loss": 99.0, "gap": 9.0}, 0.0)]
    assert mean_metrics(parts) == {"loss": 1.5, "gap": 3.0}


def test_failures_are_put_up_with_to_a_share():
    check_failures([(0, "timeout"), (3, "rejected")], drawn=4, max_failed_share=0.5, update=7)
    with pytest.raises(TooManyFailures, match=r"3 of 4 prompts of update 7 .*2 timeout, 1 rejected"):
        check_failures([(0, "timeout"), (1, "timeout"), (3, "rejected")], drawn=4, max_failed_share=0.5, update=7)


def test_dropped_prompts_are_refilled_with_further_slots(policy, brightness):
    method, asked = RLHFSharpening(SHARPENING), []
    bad = {1, 4}

    def collect_tasks(batches):
        experiences = []
        for slots in batches:
            asked.append(slots)

            def score(images, prompts, slots=slots):
                failed = {i: "timeout" for i, p in enumerate(prompts) if slots[int(p)] in bad}
                return Scores(brightness(images, prompts).values, failed)

            batch = Batch.of_prompts([str(place) for place in range(len(slots))])
            experiences.append(method.collect(policy, policy.frozen_copy(), score, batch, Seeds(0, 0, slots)))
        return experiences

    experience = collect_update(collect_tasks, prompts_per_update=4, rollout_batch_size=2, max_failed_share=0.5)
    assert asked == [(0, 1), (2, 3), (4,), (5,)]  # slot 4, the first refill, fails as well
    assert experience.slots == [0, 2, 3, 5]
    assert experience.dropped == [(1, "timeout"), (4, "timeout")]
    assert experience.groups == 8
    bad |= {0, 2}
    with pytest.raises(TooManyFailures, match="3 of 4"):
        collect_update(collect_tasks, 4, 2, 0.5)


@pytest.mark.parametrize("size", [1, 3, 8, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_micro_batches_cover_every_group_once(policy, brightness, size, world_size):
    _, experience = collected(policy, brightness)
    experience.path_rewards[:, 0] = torch.arange(8.0)
    ranks = [micro_batches(experience, size, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    groups = [g for batches in ranks for part, w in batches if w for g in part.path_rewards[:, 0].tolist()]
    assert groups == list(range(8))
    mean = np.mean([sum(w * part.path_rewards[:, 0].mean().item() for part, w in batches) for batches in ranks])
    assert mean == pytest.approx(3.5)
    assert all(1 <= part.groups <= size for batches in ranks for part, _ in batches)


def test_micro_batches_need_a_group(policy, brightness):
    _, experience = collected(policy, brightness)
    with pytest.raises(ValueError, match="without a group"):
        micro_batches(experience.select([]), 4)


def test_accumulated_gradient_is_the_whole_gradient(policy, brightness):
    method, experience = collected(policy, brightness)
    policy.denoiser.requires_grad_(True)

    def gradient(size, world_size=1):
        policy.denoiser.zero_grad()
        for rank in range(world_size):
            for part, weight in micro_batches(experience, size, rank, world_size):
                (weight * method.loss(policy, part).value / world_size).backward()
        return torch.cat([parameter.grad.flatten().clone() for parameter in policy.denoiser.parameters()])

    whole = gradient(100)
    scale = whole.abs().max()
    for size, world_size in ((1, 1), (3, 1), (2, 2), (3, 3)):
        assert (gradient(size, world_size) - whole).abs().max() < 1e-4 * scale


def test_micro_batch_size_does_not_change_training(policy, brightness):
    other = policy.frozen_copy()
    rows = timeless(train(policy, brightness))
    again = timeless(train(other, brightness, replace(TRAINING, train_batch_size=100)))
    for row, same in zip(rows, again, strict=True):
        for name in row.keys() - {"accuracy"}:  # which side of 0 a log ratio of 1e-9 is on
            assert row[name] == pytest.approx(same[name], rel=2e-3, abs=1e-4), name


def test_training_repeats_itself_bit_for_bit(policy, brightness):
    other = policy.frozen_copy()
    calls = []
    first = train(policy, brightness, on_update=lambda update, metrics: calls.append((update, metrics)))
    assert calls == list(enumerate(first))
    assert timeless(first) == timeless(train(other, brightness))
    state = other.trainable_state()
    assert all(torch.equal(value, state[name]) for name, value in policy.trainable_state().items())
    changed = train(policy.frozen_copy(), brightness, replace(TRAINING, seed=2))
    assert timeless(changed) != timeless(first)


def test_metrics_of_an_update(policy, brightness):
    row = train(policy, brightness, replace(TRAINING, updates=1, lr_warmup_steps=2))[0]
    assert row["loss"] == pytest.approx(np.log(2), abs=1e-3)
    assert row["learning_rate"] == TRAINING.learning_rate / 2
    assert row["reward_gap"] > row["reward_spread"] > 0
    assert row["grad_norm"] > 0
    assert row["dropped"] == 0
    assert row["nfe"] == 4 * 3 * 4 + (row["images_scored"] / 3) * 5
    stages = ("generate", "branch", "decode", "reward", "reference", "learn")
    assert 0.5 * row["seconds"] < sum(row[f"seconds_{stage}"] for stage in stages) <= row["seconds"]


def test_learning_comes_to_prefer_the_winners(policy, brightness):
    """Ten steps on one update's pairs: the policy is then likelier than the reference to draw each winner."""
    method, experience = collected(policy, brightness)
    policy.denoiser.requires_grad_(True)
    optimizer = torch.optim.AdamW(policy.denoiser.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    rows = [learn(policy, method, experience, optimizer, replace(TRAINING, train_batch_size=100)) for _ in range(10)]
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-3)
    assert rows[-1]["loss"] < 0.6
    assert rows[-1]["accuracy"] >= 0.75
    assert rows[-1]["log_ratio_winner"] > rows[-1]["log_ratio_loser"]


def test_a_loss_that_is_not_finite_stops_before_the_step(policy, brightness):
    method, experience = collected(policy, brightness)
    policy.denoiser.requires_grad_(True)
    optimizer = torch.optim.AdamW(policy.denoiser.parameters())
    before = policy.trainable_state()
    experience.target[5, 0, 0] = torch.nan
    with pytest.raises(NonFiniteLoss, match="learning_rate"):
        learn(policy, method, experience, optimizer, TRAINING)
    assert all(torch.equal(value, before[name]) for name, value in policy.trainable_state().items())


def test_a_gradient_that_is_not_finite_stops_before_the_step(policy, brightness):
    method, experience = collected(policy, brightness)
    policy.denoiser.requires_grad_(True)
    policy.denoiser.conv_out.bias.register_hook(lambda gradient: gradient * torch.inf)
    optimizer = torch.optim.AdamW(policy.denoiser.parameters())
    before = policy.trainable_state()
    with pytest.raises(NonFiniteLoss, match="gradient"):
        learn(policy, method, experience, optimizer, TRAINING)
    assert all(torch.equal(value, before[name]) for name, value in policy.trainable_state().items())


def test_a_reward_that_is_down_stops_the_run(policy):
    def unavailable(images, prompts):
        raise RewardUnavailable("no replica answered for 60 s")

    with pytest.raises(RewardUnavailable):
        train(policy, unavailable)

    def nothing_finite(images, prompts):
        return Scores(np.full(len(images), np.nan, np.float32))

    with pytest.raises(TooManyFailures, match="4 not finite"):
        train(policy, nothing_finite)


def test_versions_and_updates_are_counted(policy, brightness):
    seen = []

    class Watched(RLHFSharpening):
        def loss(self, policy, experience: Experience):
            seen.append((experience.update, experience.version))
            return super().loss(policy, experience)

    source = PromptSource(PROMPTS)
    train_in_process(policy, Watched(SHARPENING), brightness, source, replace(TRAINING, train_batch_size=8))
    assert seen == [(0, 0), (1, 1)]
