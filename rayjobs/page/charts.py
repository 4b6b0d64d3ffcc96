"""The page's charts: geometry of inline SVG, which reads without a script, and the same numbers for the script."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rayjobs.page.contents import Contents, Row
from rayjobs.page.numbers import decimals_for, fixed, thinned, ticks

SIZE, WIDE = (520, 210), (1040, 300)  # of a drawing's own units; the page's widest holds one of the second
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 10, 30
MOST_POINTS = 1000
Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Line:
    """What a line is drawn from.

    Attributes:
        key: Which of the page's styles it has.
        name: What the legend calls it.
        column: Its metric.
        held_out: Whether it is of looks at held-out prompts, not of updates.
    """

    key: str
    name: str
    column: str
    held_out: bool = False


@dataclass(frozen=True)
class Wanted:
    """A chart that is drawn where the run has its metrics.

    Attributes:
        id: For links and the script.
        title: Its heading.
        about: One sentence.
        lines: Its lines.
        spread: Metric that is drawn as a band around the line `mean`; may be empty.
        alarmed: Whether the alarm is marked in it.
    """

    id: str
    title: str
    about: str
    lines: list[Line]
    spread: str = ""
    alarmed: bool = False


CHARTS = (
    Wanted(
        "reward", "Reward", "Of the rollouts; the band is one standard deviation over a prompt's branches.",
        [Line("best", "best branch", "reward_best"), Line("worst", "worst branch", "reward_worst"),
         Line("mean", "rollouts, mean", "reward"), Line("held", "held-out prompts", "reward", held_out=True)],
        "reward_spread", alarmed=True,
    ),
    Wanted(
        "facts", "Held-out facts", "Share of facts that the verifiers find on held-out prompts.",
        [Line("held", "facts that hold", "facts", held_out=True)], alarmed=True,
    ),
    Wanted("loss", "Loss", "Mean loss on each update's fresh experience.", [Line("loss", "loss", "loss")]),
    Wanted(
        "accuracy", "Implicit accuracy", "Share of pairs that the policy ranks as the reward does; 0.5 is chance.",
        [Line("mean", "accuracy", "accuracy")],
    ),
    Wanted("grad_norm", "Gradient norm", "Before clipping.", [Line("loss", "norm", "grad_norm")]),
    Wanted("learning_rate", "Learning rate", "AdamW's step size.", [Line("loss", "rate", "learning_rate")]),
    Wanted(
        "seconds", "Seconds an update", "Wall time, from the end of the update before.",
        [Line("mean", "seconds", "seconds")],
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        key: Which of the page's styles it has.
        name: What the legend calls it.
        path: SVG path; gaps where a value is missing.
        dots: (x, y) of its points, drawn where they are few.
        updates: Updates made at each point.
        xs: x of each point, in the chart's units.
        ys: y of each point.
        texts: Values as they are shown.
    """

    key: str
    name: str
    path: str
    dots: list[tuple[float, float]]
    updates: list[int]
    xs: list[float]
    ys: list[float]
    texts: list[str]


@dataclass(frozen=True)
class Chart:
    """A chart over the updates.

    Attributes:
        id: For links and the script.
        title: Its heading.
        about: One sentence.
        series: Its lines.
        width: Width of the drawing.
        height: Its height.
        band: SVG path of the spread around a line; may be empty.
        alarm: x and width of the stretch with the alarm, or empty.
        x_ticks: (x, label).
        y_ticks: (y, label).
    """

    id: str
    title: str
    about: str
    series: list[Series]
    width: int
    height: int
    band: str = ""
    alarm: tuple[float, float] | tuple[()] = ()
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)

    @property
    def wide(self) -> bool:
        """Whether it takes the page's whole width."""
        return self.width > SIZE[0]

    @property
    def summary(self) -> str:
        """The chart in words: where each line begins and ends."""
        told = [f"{s.name} from {s.texts[0]} to {s.texts[-1]}" for s in self.series if s.texts]
        first, last = min(s.updates[0] for s in self.series), max(s.updates[-1] for s in self.series)
        return f"{self.title} over updates {first} to {last}: {'; '.join(told)}"

    def data(self) -> dict[str, Any]:
        """What the script needs to read values at an update."""
        kept = ("key", "name", "updates", "xs", "ys", "texts")
        return {"id": self.id, "series": [{name: getattr(s, name) for name in kept} for s in self.series]}


def points(rows: Sequence[Row], name: str, offset: int = 0) -> Points:
    """A metric over the updates.

    Args:
        rows: Rows with `update`.
        name: The metric.
        offset: What makes updates made of `update`.

    Returns:
        (updates made, value) where there is a finite value.
    """
    found = [(int(row["update"]) + offset, row.get(name)) for row in rows]
    return [(u, float(v)) for u, v in found if isinstance(v, (int, float)) and math.isfinite(v)]


def charts(contents: Contents) -> list[Chart]:
    """The charts that a run's files give.

    Args:
        contents: The run.

    Returns:
        Reward, held-out facts, loss and further ones; a metric that the run does not have has none.
    """
    rows, looks = contents.rows, contents.looks
    end = max((contents.updates, *(int(look["update"]) for look in looks)), default=0)
    alarm = min((int(look["update"]) for look in looks if look.get("alarm")), default=None)
    found = []
    for wanted in (*CHARTS, _by_reward(rows)):
        read = [
            (line, points(looks if line.held_out else rows, line.column, 1 - line.held_out)) for line in wanted.lines
        ]
        lines = {line.key: (line.name, values) for line, values in read if values}
        if lines:
            found.append(_chart(wanted, lines, points(rows, wanted.spread, 1), alarm, end))
    return found


def _by_reward(rows: list[Row]) -> "Wanted":
    """A line for each of several rewards that have columns of their own."""
    columns = sorted({name for row in rows for name in row if name.startswith("reward_") and name.endswith("_mean")})
    lines = [
        Line(f"part{place}", column.removeprefix("reward_").removesuffix("_mean").replace("_", " "), column)
        for place, column in enumerate(columns)
    ]
    return Wanted("by_reward", "Each reward", "Mean score of the rollouts' images, each in its own unit.", lines)


def _chart(
    wanted: Wanted, lines: dict[str, tuple[str, Points]], spread: Points, alarm: int | None, end: int
) -> Chart:  # fmt: skip
    frame = Frame.around(lines, spread, end, WIDE if wanted.id == "reward" else SIZE)
    known = dict(spread)
    around = [(u, v, known[u]) for u, v in lines.get("mean", ("", []))[1] if u in known]
    upper = [(frame.x(u), frame.y(v + s)) for u, v, s in around]
    lower = [(frame.x(u), frame.y(v - s)) for u, v, s in around]
    digits = max(decimals_for(value for _, value in values) for _, values in lines.values())
    drawn = [_series(key, name, values, frame, digits) for key, (name, values) in lines.items()]
    hatched: tuple[float, float] | tuple[()] = ()
    if alarm is not None and wanted.alarmed:
        hatched = (frame.x(alarm), max(2.0, round(frame.size[0] - RIGHT - frame.x(alarm), 1)))
    band = _path([*upper, *reversed(lower)]) + "Z" if len(upper) > 1 else ""
    x_ticks = [(frame.x(tick), fixed(tick, 0)) for tick in ticks(frame.first, frame.last, 8, whole=True)]
    y_ticks = [(frame.y(tick), fixed(tick, frame.decimals)) for tick in ticks(frame.low, frame.high)]
    return Chart(wanted.id, wanted.title, wanted.about, drawn, *frame.size, band, hatched, x_ticks, y_ticks)


@dataclass(frozen=True)
class Frame:
    """A chart's axes.

    Attributes:
        first: Leftmost update.
        last: Rightmost update.
        low: Lowest value.
        high: Highest value.
        decimals: Decimals of the ticks on the left.
        size: Width and height of the drawing.
    """

    first: float
    last: float
    low: float
    high: float
    decimals: int
    size: tuple[int, int]

    @classmethod
    def around(cls, lines: dict[str, tuple[str, Points]], spread: Points, end: int, size: tuple[int, int]) -> "Frame":
        """Axes that hold all lines, and the spread around the mean, with a little room.

        Args:
            lines: Points by key.
            spread: Half width of the band.
            end: Updates made.
            size: Width and height of the drawing.

        Returns:
            The axes.
        """
        values = [value for _, found in lines.values() for _, value in found]
        known = dict(spread)
        mean = lines.get("mean", ("", []))[1] if spread else []
        values += [v + sign * known[u] for u, v in mean if u in known for sign in (-1, 1)]
        first = min(found[0][0] for _, found in lines.values())
        last = max(end, *(found[-1][0] for _, found in lines.values()))
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = low - room, high + room
        shown = ticks(low, high)
        step = shown[1] - shown[0] if len(shown) > 1 else high - low
        alone = 0.5 * (first == last)
        return cls(first - alone, last + alone, low, high, decimals(step), size)

    def x(self, update: float) -> float:
        """Where an update is."""
        part = (update - self.first) / (self.last - self.first)
        return round(LEFT + part * (self.size[0] - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Where a value is."""
        part = (value - self.low) / (self.high - self.low)
        return round(self.size[1] - BOTTOM - part * (self.size[1] - BOTTOM - TOP), 1)


def decimals(step: float) -> int:
    """Decimals that a step of 1, 2 or 5 times a power of ten needs."""
    return max(0, -math.floor(math.log10(step) + 1e-9))


def _series(key: str, name: str, values: Points, frame: Frame, digits: int) -> Series:
    kept = [values[place] for place in thinned(len(values), MOST_POINTS)]
    places = [(frame.x(update), frame.y(value)) for update, value in kept]
    xs, ys = [x for x, _ in places], [y for _, y in places]
    dots = places if len(places) <= 60 else []
    texts = [fixed(value, digits) for _, value in kept]
    return Series(key, name, _path(places), dots, [update for update, _ in kept], xs, ys, texts)


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
