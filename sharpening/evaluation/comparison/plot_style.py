"""What the comparison's figures share: size, axes, colours of systems, and the PNG they become."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from sharpening.evaluation.plots import BLUE, DPI, GREY, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "base": GREY, "standard": "#b08a2e", "dpo": "#7a5aa6", "ddpo": RED, "d3po": "#d98a5f", "iterpo": "#3f8f6b",
    "rebel": "#a64d79", "guidance_distillation": "#c98a1b", "sft": "#5b9bd5", "rlhf": BLUE, "rlhf_image": "#3a9fb5",
    "rlhf_guided": "#123a63",
    "random": "#8c8c8c", "zero_order": "#3f8f6b", "paths": "#b08a2e", "demon": RED, "free2guide": "#7a5aa6",
    "fk_steering": "#a64d79",
}  # fmt: skip
MARKERS = {"random": "o", "zero_order": "s", "paths": "^", "demon": "v", "free2guide": "D", "fk_steering": "P"}


def colour_of(system: str) -> str:
    """A system's colour; grey for one that is not in the comparison."""
    return COLOURS.get(system, GREY)


def new_figure(width: float = 8.0, height: float = 5.0) -> Figure:
    """An empty figure that no display and no global state knows of.

    Args:
        width: in inches.
        height: in inches.

    Returns:
        The figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finish_axes(axes: Axes, title: str) -> None:
    """Grid, open frame and a title at the left, as in the reward curve of a run."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11)


def png(figure: Figure) -> bytes:
    """The figure as PNG, without the library's version in it."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
