"""Published models at full size, without their weights: parameters, and the arithmetic of docs/families.md."""

from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights

from tests.full_size import MODELS, activation_columns, activations, adapters_of, parameters, weights_columns

TABLE = Path(__file__).resolve().parents[2] / "docs" / "families.md"
PUBLISHED = {
    "SD 1.5": 859_520_964,
    "SD 2.1": 865_910_724,
    "SDXL base": 2_567_463_684,
    "SD 3 medium": 2_028_328_000,
    "SD 3.5 medium": 2_243_171_520,
    "SD 3.5 large": 8_056_627_520,
    "FLUX.1": 11_901_408_320,
    "PixArt-Σ": 610_856_096,
}


def documented(name):
    """Rows of the table by pixels, without name and pixels."""
    cells = [line.strip("| \n").split(" | ") for line in TABLE.read_text(encoding="utf-8").splitlines()]
    return {int(row[1]): row[2:] for row in cells if row[0] == name}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_what_training_them_takes(name):
    model = MODELS[name]
    assert parameters(model.denoiser) == PUBLISHED[name]
    rows = documented(name)
    assert set(rows) == {512, model.pixels}
    expected = weights_columns(model)
    assert all(row[:4] == expected for row in rows.values())


def test_sdxl_at_full_size():
    model = MODELS["SDXL base"]
    with init_empty_weights():
        unet = model.denoiser()
    assert {p.device.type for p in unet.parameters()} == {"meta"}
    assert sum(p.numel() for p in unet.parameters()) == PUBLISHED["SDXL base"]
    assert [parameters(build) for build in model.frozen] == [123_060_480, 694_659_840, 83_653_863]
    rows = documented("SDXL base")
    assert rows[1024][1:3] == ["5.1", "41.1"]  # 2 and 16 bytes for each of 2.567 · 10⁹
    assert rows[512][4:] == activation_columns(model, 512)
    assert rows[1024][5] == f"{activations(model, 1024, checkpointing=True) / 1e9:.1f}"
    assert model.inputs(1024)["sample"].shape == (1, 4, 128, 128)


@pytest.mark.parametrize(("name", "layers", "count"), [("SDXL base", 560, 23_224_320), ("SD 3 medium", 191, 9_388_032)])
def test_adapters_at_full_size(name, layers, count):
    assert adapters_of(MODELS[name], rank=16) == (layers, count)
    rows = (TABLE.parent / "training.md").read_text(encoding="utf-8")
    full = weights_columns(MODELS[name])[2]
    assert f"| {name} | {layers} | {count / 1e6:.1f} | {16 * count / 1e9:.2f} | {full} |" in rows


def test_what_a_layer_keeps_by_hand():
    """Linear, GELU, linear: the input, what the activation sees and what it gives; parameters do not count."""

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 32), torch.nn.Linear(32, 8)

        def forward(self, x):
            return self.second(torch.nn.functional.gelu(self.first(x)))

    def inputs(pixels):
        return {"x": torch.empty(pixels, 8, device="meta", dtype=torch.bfloat16)}

    kept = activations(type(MODELS["SDXL base"])(Two, (), 16, inputs), 16, checkpointing=False)
    assert kept == 2 * 16 * (8 + 32 + 32)
