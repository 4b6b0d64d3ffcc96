"""Grids show the images and the right marks where they must be; the curve draws what the rows say."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from sharpening.evaluation.grids import RIGHT, WRONG, GridStyle, comparison_grid, mark_boxes, sample_grid
from sharpening.evaluation.plots import reward_curve
from sharpening.evaluation.run_folder import RunFolder

STYLE = GridStyle(image=128, columns=2, gap=10)


def pictures(count: int, size: int = 64) -> np.ndarray:
    """Plain images, each of its own colour."""
    colours = np.random.default_rng(0).integers(0, 255, (count, 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, (count, size, size, 3)).copy()


def near(pixel: tuple[int, ...], colour: tuple[int, int, int]) -> bool:
    return max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) < 12


def mark_colour(grid: Image.Image, box: tuple[int, int, int, int]) -> tuple[int, ...]:
    """The disc's colour, taken left of its middle, where neither tick nor cross passes."""
    return grid.getpixel((box[0] + 2, (box[1] + box[3]) // 2))


def test_images_stand_where_they_should_enlarged_by_whole_factors():
    images = pictures(3)
    images[:, 0, 0] = 0
    grid = sample_grid(images, ["a", "b", "c"], style=STYLE)
    for number in range(3):
        left = 10 + number % 2 * 138
        upper = 10 + number // 2 * (128 + STYLE.caption_height + 10)
        assert grid.getpixel((left + 64, upper + 64)) == tuple(images[number, 32, 32])
        assert grid.getpixel((left + 127, upper + 127)) == tuple(images[number, 63, 63])
        assert grid.getpixel((left + 1, upper + 1)) == (0, 0, 0)
        assert grid.getpixel((left + 2, upper + 2)) == tuple(images[number, 1, 1])
    assert grid.size == (10 + 2 * 138, 10 + 2 * (128 + STYLE.caption_height + 10))


def test_marks_are_green_for_facts_that_hold_and_red_for_others():
    facts = [(True, False, True), (False,), None]
    grid = sample_grid(pictures(3), ["a", "b", "c"], facts, style=STYLE)
    below = 10 + 128
    found = [near(mark_colour(grid, box), RIGHT) for box in mark_boxes(3, 10, below, STYLE)]
    assert found == [True, False, True]
    assert near(mark_colour(grid, mark_boxes(3, 10, below, STYLE)[1]), WRONG)
    assert near(mark_colour(grid, mark_boxes(1, 148, below, STYLE)[0]), WRONG)
    assert mark_colour(grid, mark_boxes(2, 148, below, STYLE)[1]) == (255, 255, 255)
    second_row = below + STYLE.marks_height + STYLE.caption_height + 10 + 128
    assert mark_colour(grid, mark_boxes(1, 10, second_row, STYLE)[0]) == (255, 255, 255)


def test_the_frame_tells_whether_every_fact_holds():
    grid = sample_grid(pictures(2), ["a", "b"], [(True, True), (True, False)], style=STYLE)
    assert grid.getpixel((10 - 1, 10 + 60)) == RIGHT
    assert grid.getpixel((148 - 1, 10 + 60)) == WRONG


def test_ticks_and_crosses_differ_in_shape_too():
    grid = sample_grid(pictures(1), ["a"], [(True, False)], style=STYLE)
    tick, cross = (np.array(grid.crop(box).convert("L")) > 200 for box in mark_boxes(2, 10, 138, STYLE))
    assert (tick != cross).sum() > 10


def test_captions_are_wrapped_within_their_cell_and_cut_with_an_ellipsis():
    long = "a red striped circle to the left of a large blue dotted triangle on a plain light grey background " * 3
    grid = np.array(sample_grid(pictures(2), [long, ""], style=STYLE))
    caption = grid[10 + 128 : 10 + 128 + STYLE.caption_height]
    assert (caption[:, 10:138] < 128).any()
    assert (caption[:, 139:] == 255).all()
    lines = [(caption[3 + i * STYLE.line_height :][: STYLE.line_height] < 128).any() for i in range(STYLE.lines)]
    assert all(lines)


def test_comparison_puts_before_left_and_after_right():
    before, after = pictures(3), 255 - pictures(3)
    facts_before, facts_after = [(True, False)] * 3, [(True, True)] * 3
    style = GridStyle(image=128, columns=4, gap=12)
    grid = comparison_grid(before, after, ["a", "b", "c"], facts_before, facts_after, "title", style)
    top = style.line_height + 8 + style.line_height + style.gap
    right = 12 + 128 + 6
    assert grid.getpixel((12 + 64, top + 64)) == tuple(before[0, 0, 0])
    assert grid.getpixel((right + 64, top + 64)) == tuple(after[0, 0, 0])
    marks = [mark_boxes(2, left, top + 128, style)[1] for left in (12, right)]
    assert [near(mark_colour(grid, box), RIGHT) for box in marks] == [False, True]
    second_pair = 12 + 2 * 128 + 6 + 24
    assert grid.getpixel((second_pair + 64, top + 64)) == tuple(before[1, 0, 0])


def test_large_images_are_not_shrunk():
    assert sample_grid(pictures(1, size=300), ["a"], style=STYLE).width == 10 + 310


def test_grids_of_unequal_parts_are_refused():
    with pytest.raises(ValueError, match="equally many"):
        sample_grid(pictures(2), ["a"])
    with pytest.raises(ValueError, match="at least one"):
        sample_grid(pictures(0), [])
    with pytest.raises(ValueError, match="equally many"):
        comparison_grid(pictures(2), pictures(1), ["a", "b"])


def test_a_grid_is_written_as_png(tmp_path):
    run = RunFolder.create(tmp_path / "run", {})
    grid = sample_grid(pictures(1), ["a"], style=STYLE)
    with Image.open(run.write_image("samples_before.png", grid)) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.array(image), np.array(grid))


def curve(rows: list[dict], held_out: list[dict] | tuple = ()) -> np.ndarray:
    drawn = reward_curve(rows, "CLIP score (cosine × 100)", held_out)
    return np.array(Image.open(BytesIO(drawn)).convert("RGB")).astype(int)


def rows(count: int, spread: float = 2.0) -> list[dict]:
    return [
        {"update": u, "reward": 85 + 0.1 * u, "reward_spread": spread, "reward_best": 88 + 0.1 * u,
         "reward_worst": 82 + 0.1 * u, "loss": 0.69 - 0.001 * u, "accuracy": 0.5 + 0.005 * u}
        for u in range(count)
    ]  # fmt: skip


def height_of(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Middle row of a colour in each column of the upper panel, NaN where it does not occur."""
    mask = (np.abs(image[60:460] - colour) < 40).all(-1)
    counts = mask.sum(0)
    places = (mask * np.arange(60, 460)[:, None]).sum(0) / np.maximum(counts, 1)
    return np.where(counts > 0, places, np.nan)


def test_the_curve_rises_with_the_reward_and_has_the_promised_size():
    image = curve(rows(40))
    assert image.shape == (845, 1040, 3)
    line = height_of(image, (31, 90, 150))
    # rows count from the top, so a rising reward is a falling row number
    assert np.nanmean(line[820:900]) < np.nanmean(line[200:280]) - 50


def test_the_band_is_as_wide_as_the_spread():
    def area(spread: float) -> int:
        band = curve(rows(40, spread))[60:460]
        return int(((np.abs(band - (203, 221, 239)) < 12).all(-1)).sum())

    assert area(0.0) < 0.02 * area(2.0)
    assert 1.5 < area(2.0) / area(1.0) < 2.5


@pytest.mark.parametrize("given", [rows(1), [{"update": 0, "reward": 85.0}], [{"update": 0, "loss": None}]])
def test_short_runs_and_missing_metrics_still_draw(given):
    assert curve(given).shape == (845, 1040, 3)


def test_held_out_prompts_and_the_alarm_are_drawn():
    looks = [{"update": u, "reward": 85.0 - 0.05 * u, "alarm": u >= 24} for u in range(0, 40, 8)]

    def black(image: np.ndarray) -> int:
        return int((image[60:460, 120:] < 50).all(-1).sum())

    def red(image: np.ndarray) -> np.ndarray:
        panel = image[120:400]
        return ((panel[..., 0] - panel[..., 2] > 12) & (panel[..., 0] > 200)).sum(0)

    plain, drawn = curve(rows(40)), curve(rows(40), looks)
    assert black(drawn) > black(plain) + 200
    calm = curve(rows(40), [look | {"alarm": False} for look in looks])
    assert red(calm).max() == 0
    columns = np.flatnonzero(red(drawn) > 100)
    assert len(columns) > 200
    assert columns.min() > 500  # the alarm is in the later half


def test_no_updates_no_curve(tmp_path):
    with pytest.raises(ValueError, match="no update"):
        reward_curve([])
    run = RunFolder.create(tmp_path / "run", {})
    assert run.write_curve([], "CLIP") is None
    path = run.write_curve(rows(3), "CLIP")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_drawing_leaves_no_global_figure_behind():
    import matplotlib.pyplot as plt

    curve(rows(2))
    assert plt.get_fignums() == []


def test_a_note_stands_between_marks_and_caption():
    facts = [(True,), (False,)]
    plain = np.array(sample_grid(pictures(2), ["a", "b"], facts, style=STYLE))
    notes = ["reward 58.35", "not scored"]
    noted = np.array(sample_grid(pictures(2), ["a", "b"], facts, style=STYLE, notes=notes))
    upper = STYLE.gap + 128 + STYLE.marks_height
    lower = upper + STYLE.note_height
    assert np.array_equal(np.delete(noted, slice(upper, lower), axis=0), plain)
    band = noted[upper:lower]
    assert all((half < 160).any() for half in np.array_split(band, 2, axis=1))
    other = np.array(sample_grid(pictures(2), ["a", "b"], facts, style=STYLE, notes=["reward 58.36", "not scored"]))
    assert (other != noted).any()
    pairs = [("reward 1.00", "reward 2.00")] * 2
    both = (pictures(2), pictures(2), ["a", "b"], facts, facts)
    taller = comparison_grid(*both, style=STYLE, notes=pairs).height - comparison_grid(*both, style=STYLE).height
    assert taller == 2 * STYLE.note_height  # a row a pair
    with pytest.raises(ValueError, match="equally many"):
        sample_grid(pictures(2), ["a", "b"], notes=["one"])
