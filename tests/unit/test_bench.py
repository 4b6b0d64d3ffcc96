"""The benchmark: its arithmetic, its tables, the yardstick's loss against its formula, its command line."""

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rayjobs import bench
from rayjobs.benchmark import report, tables
from rayjobs.benchmark.contenders import least_time_first, our_contenders
from rayjobs.benchmark.yardstick import Yardstick, YardstickOptions, preference_loss
from rayjobs.errors import OptionError
from sharpening.rewards.base import Scores
from sharpening.sampling import sample
from sharpening.seeds import generator, noise

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = YardstickOptions(branches=3, branch_steps=3, rollout_steps=5, beta=40.0)


def turns(seconds, **stages):
    """One turn's rows: the first update takes a hundred times as long as it should."""
    rows = [{"seconds": s, "images_scored": 60, **{f"seconds_{k}": v * s for k, v in stages.items()}} for s in seconds]
    return [rows[0] | {"seconds": 100 * seconds[0]}, *rows[1:]]


# -- arithmetic ----------------------------------------------------------------------------------------------------


def test_rates_leave_the_first_update_out_and_are_totals_over_totals():
    measured = [turns([2, 2, 4]), turns([2, 3, 3])]
    rates = report.throughput(report.steady(measured), prompts=10, pairs=40)
    assert rates == {"updates": 4 / 12, "prompts": 40 / 12, "pairs": 160 / 12, "images_scored": 20.0}


def test_shares_are_of_wall_time():
    ray = report.shares(report.steady([turns([2, 2], generate=0.25, wait=0.6, publish=0.1)]))
    assert ray == pytest.approx({"generate": 0.25, "wait": 0.6, "publish": 0.1})
    assert list(ray) == ["generate", "wait", "publish"]


def test_the_ray_job_is_compared_turn_by_turn_and_as_a_whole():
    found = report.summarise(
        {
            "prompts_per_update": 8, "pairs_per_update": 32,
            "ray": [turns([4, 4, 4], wait=0.5), turns([5, 5, 5], wait=0.5)],
            "loop": [turns([3, 3, 3], learn=0.2), turns([5, 5, 5], learn=0.2)],
        }
    )  # fmt: skip
    assert found["ray_fraction"]["turns"] == pytest.approx([0.75, 1.0])
    assert found["ray_fraction"]["value"] == pytest.approx((4 / 18) / (4 / 16))
    assert found["ray_fraction"]["met"]
    assert found["share"]["loop"] == pytest.approx({"learn": 0.2})
    assert found["throughput"]["ray"]["prompts"] == pytest.approx(8 * 4 / 18)


def test_a_growing_learner_misses_its_target():
    def memory(n3, n8):
        by_n = {"3": {"loaded": 9, "peak": n3, "cuda": 0}, "8": {"loaded": 9, "peak": n8, "cuda": 0}}
        return report.summarise({"memory": {"sharpening": by_n}})["memory"]

    assert memory(1000, 1010)["met"]
    assert memory(1000, 1300)["growth"] == {"sharpening": {"peak": 1.3}}
    assert not memory(1000, 1300)["met"]


def test_branch_counts_are_ordered_as_numbers():
    by_n = {"12": {"loaded": 1, "peak": 12, "cuda": 0}, "3": {"loaded": 1, "peak": 3, "cuda": 0}}
    assert report.summarise({"memory": {"sharpening": by_n}})["memory"]["growth"]["sharpening"]["peak"] == 4


def contenders(k1_seconds, k4_seconds):
    return {
        "public order": {"seconds": [2.0, 2.0], "prompts": 1, "pairs": 1},
        "K=1": {"seconds": [k1_seconds] * 3, "prompts": 24, "pairs": 24},
        "K=4": {"seconds": [k4_seconds] * 2, "prompts": 24, "pairs": 96},
    }


def test_the_yardstick_is_compared_by_prompts_at_k1_and_by_pairs_at_k4():
    found = report.summarise({"rates": contenders(8.0, 16.0)})["yardstick"]
    assert found["ratios"]["K=1"] == pytest.approx({"prompts": 6.0, "pairs": 6.0})
    assert found["ratios"]["K=4"] == pytest.approx({"prompts": 3.0, "pairs": 12.0})
    assert found["prompts_at_k1"] == {"value": 6.0, "target": 5.0, "met": True}
    assert found["pairs_at_k4"] == {"value": 12.0, "target": 15.0, "met": False}


def test_contenders_get_equal_time_by_turns(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    order = []

    class Slow:
        prompts = pairs = 1

        def __init__(self, name, seconds):
            self.name, self.seconds = name, seconds

        def update(self, number):
            order.append((self.name, number))
            clock[0] += self.seconds

    spent = least_time_first({"a": Slow("a", 1.0), "b": Slow("b", 3.0)}, seconds=6.0)
    assert spent == {"a": [1.0] * 6, "b": [3.0] * 2}
    assert order[:2] == [("a", 0), ("b", 0)]  # not counted
    assert order[2:] == [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("a", 4), ("b", 2), ("a", 5), ("a", 6)]


def test_ours_has_the_yardsticks_branches():
    found = our_contenders(YardstickOptions(branches=3, branch_steps=3, rollout_steps=25))
    assert {name: change["timesteps_per_rollout"] for name, change in found.items()} == {
        "K=1": 1, "K=4": 4, "K=1, same m and steps": 1, "K=4, same m and steps": 4
    }  # fmt: skip
    assert all(change["branches"] == 3 for change in found.values())
    assert "branch_steps" not in found["K=4"]
    assert found["K=4, same m and steps"]["branch_steps"] == 3
    assert found["K=4, same m and steps"]["rollout_steps"] == 25


# -- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (0.9996, "1.000"),
        (1.5, "1.50"),
        (56.78, "56.8"),
        (1234.5, "1234"),
        (-2.0, "-2.00"),
    ],
)
def test_numbers_have_three_digits(value, shown):
    assert tables.number(value) == shown


def test_tables_name_missed_targets_and_align():
    found = report.summarise({"rates": contenders(8.0, 16.0)})
    parts = tables.sections(found, {})
    assert [part.title for part in parts] == [
        "Timesteps per rollout, at equal wall time", "Against the public code's order"
    ]  # fmt: skip
    text = tables.text_table(parts, "here")
    assert "prompts ≥ 5: met" in text
    assert "pairs ≥ 15: missed" in text
    page = tables.markdown(parts, "here")
    assert "| ours, K=1 | 3.00 | 3.00 | 6.00 | 6.00 | prompts ≥ 5: met |" in page
    for part in parts:
        assert {len(row) for row in part.rows} == {len(part.header)}


def test_a_whole_report_makes_a_table_of_every_part():
    memory = {
        name: {n: {"loaded": 5, "peak": 9, "cuda": 4} for n in ("3", "8")} for name in ("sharpening", "public order")
    }
    stages = dict.fromkeys(report.STAGES, 0.1)
    rows = [turns([2, 2, 2], **stages)]
    measured = {"prompts_per_update": 2, "pairs_per_update": 8, "ray": rows, "loop": rows}
    found = report.summarise(measured | {"memory": memory, "rates": contenders(8.0, 16.0)})
    parts = tables.sections(found, {"setting": "Small.", "threads": 2, "updates": 3, "turns": 1})
    assert len(parts) == 5
    text = tables.text_table(parts, "here")
    assert all(stage in text for stage in report.STAGES)
    assert "rollout: idle and hand-over   50.0%" in text
    assert json.loads(json.dumps(found)) == found


def test_a_page_is_written_between_its_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Above\n{tables.BEGIN}\nold\n{tables.END}\nbelow\n")
    for contents in ("first", "second"):
        tables.write_between_markers(page, contents)
        assert page.read_text() == f"# Above\n{tables.BEGIN}\n\n{contents}\n\n{tables.END}\nbelow\n"
    for broken in ("", f"{tables.BEGIN}", f"{tables.END}{tables.BEGIN}", f"{tables.BEGIN}{tables.END}{tables.END}"):
        page.write_text(broken)
        with pytest.raises(ValueError, match="needs one line"):
            tables.write_between_markers(page, "contents")
        assert page.read_text() == broken


def test_the_projects_own_page_has_the_markers():
    tables.split_at_markers(ROOT / "docs" / "performance.md")


# -- yardstick -----------------------------------------------------------------------------------------------------


def test_the_yardsticks_loss_by_hand():
    errors = torch.tensor([[0.5, 0.7], [0.2, 0.2], [0.4, 0.6]])
    rewards = torch.tensor([[1.0, 2.0], [4.0, 1.0], [2.5, 2.0]])  # sums 3, 5, 4.5: winner 1, loser 0
    reference = torch.tensor([0.55, 0.25, 9.0])
    inside = 10.0 * ((0.25 - 0.2) - (0.55 - 0.6))
    expected = math.log1p(math.exp(-inside)) + 2.0
    assert preference_loss(errors, reference, rewards, beta=10.0).item() == pytest.approx(expected, rel=1e-6)


def test_the_yardsticks_gap_has_no_gradient():
    errors = torch.rand(3, 2, requires_grad=True)
    rewards = torch.rand(3, 2, requires_grad=True)
    gradients = torch.autograd.grad(
        preference_loss(errors, torch.rand(3), rewards, 5.0), [errors, rewards], allow_unused=True
    )
    assert gradients[1] is None
    assert (gradients[0] != 0).any(dim=1).sum() == 2  # winner and loser, not the one between


def red(images, prompts):
    return Scores(images[..., 0].mean(axis=(1, 2), dtype=np.float64).astype(np.float32))


def test_the_yardsticks_loss_is_its_formula_on_a_model(policy):
    """Branch by branch, without a graph, from the policy's own steps and its own decoder."""
    reference = policy.frozen_copy()
    with torch.no_grad():
        for parameter in policy.denoiser.parameters():
            parameter.add_(
                0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    loss, walk = Yardstick(policy, reference, red, OPTIONS).loss("a red circle", run_seed=3, update=1)

    condition, grid = policy.encode(["a red circle"]), policy.timesteps(5)
    place = int(generator(3, "yardstick timestep", 1).integers(5))
    paths, errors, first = [], [], []
    with torch.no_grad():
        for k in range(3):
            eps = noise(policy.latent_shape, 3, "yardstick", 1, k)[None]
            x = policy.add_noise(sample(policy, condition, eps, 5), eps, grid[place, None])
            first.append(((reference.predict(x, grid[place, None], condition).eps - eps) ** 2).mean())
            rewards, misses = [], []
            for t in grid[place : place + 3]:
                prediction = policy.predict(x, t[None], condition)
                misses.append(((prediction.eps - eps) ** 2).mean())
                rewards.append(float(red(policy.decode(prediction.x0), [""]).values[0]))
                x = policy.step(x, t[None], policy.previous(t[None], 5), prediction)
            paths.append(sum(rewards))
            errors.append(sum(misses) / len(misses))
    w, b = int(np.argmax(paths)), int(np.argmin(paths))
    inside = OPTIONS.beta * ((first[w] - errors[w]) - (first[b] - errors[b])).item()
    assert abs(inside) > 1e-3
    assert loss.item() == pytest.approx(math.log1p(math.exp(-inside)) + paths[w] - paths[b], rel=1e-4)

    assert walk.errors.shape == walk.rewards.shape == (3, min(3, 5 - place))
    assert all(pixels.grad_fn is not None for pixels in walk.pixels)  # the VAE's graphs are kept
    assert walk.errors.grad_fn is not None


def test_the_yardstick_makes_updates(policy):
    reference = policy.frozen_copy()
    before = policy.trainable_state()
    yardstick = Yardstick(policy, reference, red, OPTIONS)
    assert math.isfinite(yardstick.update("a red circle", 0, 0))
    after = policy.trainable_state()
    assert any((after[name] != before[name]).any() for name in before)
    assert all((reference.denoiser.state_dict()[name] == before[name]).all() for name in before)


# -- the process with torch ----------------------------------------------------------------------------------------


@pytest.fixture
def job_options(pipeline_folder, tmp_path):
    """A small job whose reward is the brightness of images: no reward model is loaded."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\nthree crosses\na green triangle\n")
    from rayjobs.options import RLHFOptions

    return RLHFOptions(
        pretrained_model_name_or_path=str(pipeline_folder), prompts=str(prompts), prompts_per_update=4,
        rollout_batch_size=2, rollout_steps=4, branches=2, timesteps_per_rollout=2, train_batch_size=4,
    )  # fmt: skip


def test_jobs_go_through_lines_of_json(job_options, tmp_path, monkeypatch):
    from rayjobs.benchmark import worker

    monkeypatch.setattr(worker, "load_reward", lambda name, **options: red)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    file = tmp_path / "experience.pt"
    jobs = [
        ("loop", {"updates": 2}),
        ("collect", {"branches": 5, "prompts": 2, "path": str(file)}),
        ("learner_memory", {"path": str(file)}),
        ("rates", {"seconds": 0.01, "evaluation_prompts": 3}),
    ]
    lines = [{"config": job_options.config(), "threads": 1, "device": "cpu"}]
    lines += [{"job": name, "arguments": arguments} for name, arguments in jobs]
    answers = io.StringIO()
    # The yardstick's 25 steps and our copies of them are what takes long here: fewer will do.
    monkeypatch.setattr(worker, "YardstickOptions", lambda **changes: YardstickOptions(3, 2, 4, **changes))
    worker.serve(io.StringIO("\n".join(json.dumps(line) for line in lines)), answers)
    results = [m["result"] for m in map(json.loads, answers.getvalue().splitlines()) if "result" in m]
    loop, groups, memory, rates = results
    assert [row["update"] for row in loop] == [0, 1]
    assert loop[0]["images_scored"] == 4 * 2 * 2
    assert groups == 2 * 2
    assert torch.load(file, weights_only=False).path_rewards.shape == (4, 5)
    assert memory["peak"] >= memory["loaded"] > 0
    assert list(rates) == ["public order", *our_contenders(OPTIONS)]
    assert (rates["public order"]["prompts"], rates["K=4"]["prompts"], rates["K=4"]["pairs"]) == (1, 4, 16)
    assert rates["K=4"]["options"]["branches"] == 3
    assert rates["K=1"]["reward"]["prompts"] == 3
    assert rates["K=1"]["reward"]["low"] <= rates["K=1"]["reward"]["mean"] <= rates["K=1"]["reward"]["high"]
    assert all(entry["seconds"] for entry in rates.values())


def test_an_unknown_job_is_answered(job_options):
    from rayjobs.benchmark import worker

    lines = [
        {"config": job_options.config(), "threads": torch.get_num_threads(), "device": "cpu"},
        {"job": "exit", "arguments": {}},
    ]
    answers = io.StringIO()
    with pytest.raises(ValueError, match="no job 'exit'"):
        worker.serve(io.StringIO("\n".join(json.dumps(line) for line in lines)), answers)
    assert "no job 'exit'" in json.loads(answers.getvalue())["error"]


# -- command line --------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    script = "import sys; from rayjobs import bench; bench.build_parser().format_help(); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "ray", "diffusers", "numpy", "pydantic"} & set(shown.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--updates", "1"], "updates"),
        (["--turns", "0"], "turns"),
        (["--seconds", "nan"], "seconds"),
        (["--write", "no/such/page.md"], "write"),
        (["--json", "no/such/folder/bench.json"], "json"),
        (["--ray_address", "auto"], "ray_address"),
        (["--output_dir", "runs/here"], "output_dir"),
        (["--mixed_precision", "bf16"], "mixed_precision"),
        (["--branches", "1"], "branches"),
        (["--brunches", "3"], "brunches"),
    ],
)
def test_wrong_options_are_named(arguments, option):
    with pytest.raises(OptionError) as caught:
        bench.read_options(arguments)
    assert caught.value.option == option


def test_quick_is_a_small_job_unless_told_otherwise(pipeline_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("rayjobs.validation.check_reward_model", lambda options: None)
    model = ["--pretrained_model_name_or_path", str(pipeline_folder), "--use_gpu", "no"]
    plan, options = bench.read_options(["--quick", "--turns", "3", *model])
    assert (plan.turns, plan.updates) == (3, bench.QUICK["updates"])
    assert (options.prompts_per_update, options.max_train_steps) == (8, plan.updates)
    _, options = bench.read_options(["--quick", "--rollout_batch_size", "2", *model])
    assert options.rollout_batch_size == 2
