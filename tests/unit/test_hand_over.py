"""The hand-over's bookkeeping: order, bounds, refills, shares; without Ray."""

from typing import Any

import numpy as np
import pytest

from rayjobs.runtime.experience import RolloutTask, Share, Summary, rollout_row
from rayjobs.runtime.hand_over import Depth, HandOver
from sharpening.slots import TooManyFailures

K = 2  # groups a prompt


def make(staleness: int = 0, prompts: int = 4, batch: int = 2, updates: int = 3, share: float = 0.5) -> HandOver:
    return HandOver(lambda update, slot: 100 * update + slot, prompts, batch, staleness, updates, share)


def summary(task: RolloutTask, drop: tuple[int, ...] = ()) -> Summary:
    kept = [slot for slot in task.slots if slot not in drop]
    rewards = np.array([[10.0 * slot, 10.0 * slot + 4] for slot in kept for _ in range(K)]).reshape(-1, 2)
    dropped = [(slot, "timeout") for slot in task.slots if slot in drop]
    nfe = {"rollout": 3, "reference": 1}
    gap = {"reward_gap": np.full(len(kept) * K, 4.0)}
    return Summary(len(kept), len(kept) * K, dropped, rewards, gap, {"generate": 2.0}, nfe, len(task.slots))


def take_all(hand_over: HandOver, versions: set[int]) -> list[RolloutTask]:
    tasks = []
    while (task := hand_over.take(versions.__contains__)) is not None:
        tasks.append(task)
    return tasks


def test_synchronous_tasks_wait_for_their_version_and_cut_the_slots() -> None:
    hand_over = make()
    assert hand_over.take(set().__contains__) is None
    tasks = take_all(hand_over, {0})
    assert [(task.update, task.index, task.version, task.slots) for task in tasks] == [
        (0, 0, 0, (0, 1)), (0, 1, 0, (2, 3)),
    ]  # fmt: skip
    assert tasks[1].items == (2, 3)
    for task in tasks:
        hand_over.deliver(task, "e", summary(task))
    assert take_all(hand_over, {0}) == []  # update 1 needs version 1
    hand_over.consume(0)
    assert [task.version for task in take_all(hand_over, {0, 1})] == [1, 1]


def test_lost_experience_is_made_again_and_the_update_waits_for_it() -> None:
    hand_over = make(prompts=6)
    first, second, third = take_all(hand_over, {0})
    hand_over.deliver(first, "a", summary(first))
    assert hand_over.lose(0, ["a"]) == 1  # before the update is complete
    assert take_all(hand_over, {0}) == [first]
    hand_over.deliver(second, "b", summary(second))
    hand_over.deliver(third, "c", summary(third))
    assert hand_over.deliver(first, "a2", summary(first))
    shares = hand_over.shares(0, 0, 1)
    assert hand_over.lose(0, ["a", "x"]) == 0  # told by another rank, which had asked before it was made again
    assert hand_over.shares(0, 0, 1) == shares
    assert hand_over.lose(0, ["a2", "c"]) == 2
    assert hand_over.shares(0, 0, 1) is None
    assert take_all(hand_over, {0}) == [first, third]
    hand_over.deliver(third, "c2", summary(third))
    assert hand_over.shares(0, 0, 1) is None
    assert hand_over.deliver(first, "a3", summary(first))
    assert hand_over.shares(0, 0, 1) == [Share("a3", 0, 4), Share("b", 0, 4), Share("c2", 0, 4)]
    assert hand_over.lose(1, ["a3"]) == 0


def test_staleness_looks_ahead_that_far_and_no_farther() -> None:
    hand_over = make(staleness=1)
    tasks = take_all(hand_over, {0})
    assert [(task.update, task.version) for task in tasks] == [(0, 0), (0, 0), (1, 0), (1, 0)]
    hand_over.consume(0)
    assert [(task.update, task.version) for task in take_all(hand_over, {0, 1})] == [(2, 1), (2, 1)]
    hand_over.consume(1)
    assert take_all(hand_over, {0, 1, 2}) == []  # three updates in all


def test_order_of_arrival_does_not_matter() -> None:
    for order in ((0, 1), (1, 0)):
        hand_over = make()
        tasks = take_all(hand_over, {0})
        complete = [hand_over.deliver(tasks[i], f"e{i}", summary(tasks[i])) for i in order]
        assert complete == [False, True]
        assert hand_over.shares(0, 0, 1) == [Share("e0", 0, 4), Share("e1", 0, 4)]
        assert hand_over.shares(0, 0, 2) == [Share("e0", 0, 4)]
        assert hand_over.shares(0, 1, 2) == [Share("e1", 0, 4)]
        assert [part.path_rewards[0, 0] for part in hand_over.summaries(0)] == [0.0, 20.0]


def test_shares_of_ranks_cut_through_a_task() -> None:
    hand_over = make(prompts=3, batch=3)
    (task,) = take_all(hand_over, {0})
    hand_over.deliver(task, "e", summary(task))
    assert [hand_over.shares(0, rank, 3) for rank in range(3)] == [
        [Share("e", 0, 2)], [Share("e", 2, 4)], [Share("e", 4, 6)],
    ]  # fmt: skip


def test_a_task_given_back_is_first_in_line_and_the_same() -> None:
    hand_over = make()
    first = hand_over.take({0}.__contains__)
    assert first is not None
    hand_over.give_back(first)
    assert hand_over.take({0}.__contains__) == first


def test_dropped_prompts_are_refilled_with_new_slots_after_all_tasks_are_in() -> None:
    hand_over = make()
    first, second = take_all(hand_over, {0})
    assert not hand_over.deliver(second, "e1", summary(second, drop=(2,)))
    assert take_all(hand_over, {0}) == []
    assert not hand_over.deliver(first, "e0", summary(first))
    (refill,) = take_all(hand_over, {0})
    assert (refill.index, refill.slots, refill.items) == (2, (4,), (4,))
    assert hand_over.deliver(refill, "e2", summary(refill))
    assert hand_over.shares(0, 0, 1) == [Share("e0", 0, 4), Share("e1", 0, 2), Share("e2", 0, 2)]
    row = rollout_row(hand_over.summaries(0), actors=2)
    assert row["dropped"] == 1
    assert row["reward"] == pytest.approx((0 + 10 + 30 + 40) / 4 + 2)
    assert row["reward_spread"] == pytest.approx(2.0)
    assert row["seconds_generate"] == pytest.approx(3.0)  # three tasks of two seconds on two actors
    assert row["nfe"] == 12


def test_a_task_all_of_whose_prompts_are_dropped_has_no_share() -> None:
    hand_over = make(share=0.6)
    first, second = take_all(hand_over, {0})
    hand_over.deliver(first, None, summary(first, drop=(0, 1)))
    hand_over.deliver(second, "e1", summary(second))
    (refill,) = take_all(hand_over, {0})
    hand_over.deliver(refill, "e2", summary(refill))
    assert hand_over.shares(0, 0, 1) == [Share("e1", 0, 4), Share("e2", 0, 4)]


def test_too_many_failures_end_it() -> None:
    hand_over = make(share=0.49)
    first, second = take_all(hand_over, {0})
    hand_over.deliver(first, None, summary(first, drop=(0, 1)))
    with pytest.raises(TooManyFailures, match=r"2 of 4 prompts of update 0 .*2 timeout"):
        hand_over.deliver(second, "e1", summary(second))


def test_a_new_learner_group_forgets_what_later_weights_made() -> None:
    hand_over = make(updates=9)
    for update in range(3):
        for task in take_all(hand_over, {update}):
            hand_over.deliver(task, "e", summary(task))
        hand_over.consume(update)
    late, _ = take_all(hand_over, {3})
    hand_over.begin(1, attempt=2)
    assert not hand_over.deliver(late, "late", summary(late))
    tasks = take_all(hand_over, {1})
    assert [(task.update, task.version, task.attempt) for task in tasks] == [(1, 1, 2), (1, 1, 2)]
    hand_over.begin(1, attempt=3)  # made with version 1, which the new group holds too: still wanted
    assert [hand_over.deliver(task, "e", summary(task)) for task in tasks] == [False, True]


def test_a_result_that_comes_twice_counts_once() -> None:
    hand_over = make()
    first, second = take_all(hand_over, {0})
    results: list[Any] = [hand_over.deliver(task, "e", summary(task)) for task in (first, first, second)]
    assert results == [False, False, True]


def test_depth_counts_tasks_by_state() -> None:
    hand_over = make(staleness=1)
    assert hand_over.depth() == Depth(0, 0, 0)
    first = hand_over.take({0}.__contains__)
    assert first is not None
    assert hand_over.depth() == Depth(1, 1, 0)
    for task in [first, *take_all(hand_over, {0})]:
        hand_over.deliver(task, "e", summary(task))
    assert hand_over.depth() == Depth(0, 0, 4)
    hand_over.consume(0)
    assert hand_over.depth() == Depth(0, 0, 2)
