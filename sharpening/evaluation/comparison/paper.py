"""The paper's own numbers for SDXL (arXiv 2502.12146 v1, Tables 1 to 3), to stand beside ours; never mixed with them.

Columns are named as ours. Its CLIP score is a cosine (ours is × 100), its categories are T2I-CompBench's (BLIP-VQA,
UniDet, CLIP, 3-in-1), its preference model is ImageReward and its grader GPT-4o: levels do not compare, orders do.
"""

from __future__ import annotations

from sharpening.shapes.captions import CATEGORIES

SOURCE = "arXiv 2502.12146 v1"
COLUMNS = ("clip", *(category.replace("-", "_") for category in CATEGORIES), "aesthetic", "preference", "grader")

_ROWS: dict[str, tuple[float, ...]] = {
    "base": (0.322, 0.6369, 0.5408, 0.5637, 0.2032, 0.3110, 0.4091, 5.531, 0.780, 0.780),
    "standard": (0.325, 0.6437, 0.5771, 0.5692, 0.2084, 0.3147, 0.4100, 5.556, 0.791, 0.784),
    "dpo": (0.334, 0.6602, 0.5553, 0.5640, 0.2112, 0.3180, 0.4055, 5.754, 1.352, 0.864),
    "ddpo": (0.324, 0.6435, 0.5365, 0.5531, 0.2030, 0.3142, 0.4024, 5.640, 0.910, 0.791),
    "d3po": (0.328, 0.6434, 0.5435, 0.5657, 0.2114, 0.3153, 0.4102, 5.528, 0.982, 0.785),
    "iterpo": (0.335, 0.6637, 0.5593, 0.6167, 0.2128, 0.3207, 0.4377, 5.923, 1.408, 0.884),
    "free2guide": (0.325, 0.6321, 0.5386, 0.5548, 0.2050, 0.3125, 0.4082, 5.560, 0.873, 0.786),
    "demon": (0.325, 0.6502, 0.5507, 0.5602, 0.2150, 0.3158, 0.4070, 5.630, 1.243, 0.300),
    "inference_scaling": (0.328, 0.6550, 0.5527, 0.5700, 0.2204, 0.3168, 0.4265, 5.752, 1.329, 0.872),
    "sft": (0.334, 0.6578, 0.5692, 0.5733, 0.2120, 0.3185, 0.4125, 5.785, 1.301, 0.864),
    "rlhf": (0.338, 0.6841, 0.5680, 0.6401, 0.2134, 0.3220, 0.4498, 5.956, 1.445, 0.921),
}
TABLE_1: dict[str, dict[str, float]] = {name: dict(zip(COLUMNS, row, strict=True)) for name, row in _ROWS.items()}
"""Score by system and column."""

INFERENCE_SCALING = ("random", "zero_order", "paths")
"""The paper's row "Inference Scaling" does not say which of these three it is."""


def _sweep(rows: dict[int, tuple[float, float, float]]) -> dict[int, dict[str, float]]:
    return {value: dict(zip(("clip", "preference", "grader"), row, strict=True)) for value, row in rows.items()}


TABLE_2 = _sweep({
    1: (0.334, 1.352, 0.864), 2: (0.336, 1.355, 0.891), 3: (0.338, 1.445, 0.921), 4: (0.336, 1.446, 0.911),
    8: (0.337, 1.444, 0.919),
})  # fmt: skip
"""RLHF sharpening by branches n."""

TABLE_3 = _sweep({
    1: (0.322, 1.321, 0.897), 2: (0.328, 1.357, 0.902), 3: (0.338, 1.445, 0.921), 4: (0.334, 1.442, 0.923),
    8: (0.321, 1.376, 0.912),
})  # fmt: skip
"""RLHF sharpening by steps m."""

SWEEPS = {"branches": TABLE_2, "steps": TABLE_3}
"""The paper's tables by the name of the sweep."""
