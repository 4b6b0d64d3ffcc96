"""A run's rollouts once more, in one process and without Ray, from the weights that its checkpoints kept.

For a process of its own: in one that computed other things before, low bits may fall otherwise.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rayjobs.rewards import load_in_process, reward_plans
from rayjobs.runtime import checkpoints
from rayjobs.runtime.experience import Summary, rollout_row
from rayjobs.runtime.hand_over import HandOver
from sharpening.data.prompts import Stream
from sharpening.data.source import PromptSource
from sharpening.methods.base import Seeds
from sharpening.methods.rlhf import RLHFSharpening
from sharpening.policies import load_policy
from sharpening.rewards.combined import CombinedScore
from sharpening.rewards.statistics import before
from tests import runs
from tests.runs import Models


def again(options: Any, models: Models, folder: Path) -> list[dict[str, Any]]:
    """Rows of a run's rollouts, made in one process with the checkpoints' weights; `slots`: what was dropped."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        score = load_in_process(reward_plans(options), options.mix)
        assert isinstance(score, CombinedScore)
        policy, source = load_policy(models.pipeline), PromptSource(runs.PROMPTS)
        method = RLHFSharpening(options.method_options())
        reference = policy.frozen_copy()
        stream = Stream(len(source), options.seed, options.prompts_per_update)
        rows: list[dict[str, Any]] = []
        for update in range(runs.UPDATES):
            if update:
                path = checkpoints.path_for(folder / "checkpoints", update) / "engine" / "mp_rank_00_model_states.pt"
                state = torch.load(path, weights_only=False)["module"]
                prefix = "denoiser."
                policy.load_trainable_state({n.removeprefix(prefix): v for n, v in state.items() if prefix in n[:9]})
            hand_over = HandOver(
                stream.index, options.prompts_per_update, options.rollout_batch_size, 0, options.max_train_steps,
                options.max_failed_share,
            )  # fmt: skip
            hand_over.begin(update, 0)
            while (task := hand_over.take(lambda version: True)) is not None and task.update == update:
                own = score.scaled_by(before(rows, update, score.mix.names))
                batch, seeds = source.batch(task.items), Seeds(options.seed, update, task.slots)
                rolled = replace(method.collect(policy, reference, own, batch, seeds), version=update)
                summary = Summary(
                    len(rolled.prompts), rolled.groups, rolled.dropped, rolled.path_rewards.numpy(), {}, {}, {},
                    rolled.images_scored, scored=own.seen,
                )  # fmt: skip
                hand_over.deliver(task, rolled, summary)
            summaries = hand_over.summaries(update)
            row = {"update": update, **rollout_row(summaries, 1)}
            level = score.mix.level(row, rows[0] if rows else row)
            slots = [entry for summary in summaries for entry in summary.dropped]
            rows.append(row | {"reward_level": level, "slots": slots})
            del rows[-1]["nfe"]
        return [dict(row) for row in rows]
    finally:
        torch.set_num_threads(threads)
