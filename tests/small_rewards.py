"""Small checkpoints with random weights in the layouts of the public reward models, key by key."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tests.conftest import build_tokenizer

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "green",
    "circle",
    "square",
    "left",
    "of",
    "##s",
    ",",
)
VISION_WIDTH, TEXT_WIDTH, IMAGE, PATCH = 128, 192, 32, 16
HPS_ARCHITECTURE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def image_reward_shapes(
    vision: int = VISION_WIDTH, blocks: int = 2, image: int = IMAGE, text: int = TEXT_WIDTH, layers: int = 2,
    words: int = len(WORDS) + 2, positions: int = 40,
) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """Every tensor of `ImageReward.pt`; the sizes there: 1024, 24, 224, 768, 12, 30524, 512."""
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, vision),
        "blip.visual_encoder.pos_embed": (1, (image // PATCH) ** 2 + 1, vision),
        "blip.visual_encoder.patch_embed.proj.weight": (vision, 3, PATCH, PATCH),
        "blip.visual_encoder.patch_embed.proj.bias": (vision,),
    }

    def layer(name: str, *shape: int) -> None:
        shapes.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    for i in range(blocks):
        block = f"blip.visual_encoder.blocks.{i}"
        layer(f"{block}.norm1", vision)
        layer(f"{block}.attn.qkv", 3 * vision, vision)
        layer(f"{block}.attn.proj", vision, vision)
        layer(f"{block}.norm2", vision)
        layer(f"{block}.mlp.fc1", 4 * vision, vision)
        layer(f"{block}.mlp.fc2", vision, 4 * vision)
    layer("blip.visual_encoder.norm", vision)
    shapes["blip.text_encoder.embeddings.position_ids"] = (1, positions)
    shapes["blip.text_encoder.embeddings.word_embeddings.weight"] = (words, text)
    shapes["blip.text_encoder.embeddings.position_embeddings.weight"] = (positions, text)
    layer("blip.text_encoder.embeddings.LayerNorm", text)
    for i in range(layers):
        for attention, seen in (("attention", text), ("crossattention", vision)):
            part = f"blip.text_encoder.encoder.layer.{i}.{attention}"
            layer(f"{part}.self.query", text, text)
            layer(f"{part}.self.key", text, seen)
            layer(f"{part}.self.value", text, seen)
            layer(f"{part}.output.dense", text, text)
            layer(f"{part}.output.LayerNorm", text)
        part = f"blip.text_encoder.encoder.layer.{i}"
        layer(f"{part}.intermediate.dense", 4 * text, text)
        layer(f"{part}.output.dense", text, 4 * text)
        layer(f"{part}.output.LayerNorm", text)
    layer("blip.vision_proj", 256, vision)
    layer("blip.text_proj", 256, text)
    for number, outputs, inputs in ((0, 1024, text), (2, 128, 1024), (4, 64, 128), (6, 16, 64), (7, 1, 16)):
        layer(f"mlp.layers.{number}", outputs, inputs)
    return shapes


def image_reward_state(seed: int = 0) -> dict[str, Tensor]:
    """Random weights of that layout; embeddings so small that the norms' epsilons count."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in image_reward_shapes().items():
        if name.endswith("position_ids"):
            state[name] = torch.arange(shape[1])[None]
            continue
        small = "embed" in name and "LayerNorm" not in name or name.endswith("cls_token")
        width = 2e-3 if small else 0.2 if len(shape) == 1 else shape[1] ** -0.5
        tensor = width * torch.randn(shape, generator=generator)
        is_norm = ("norm" in name.lower()) and name.endswith("weight")
        state[name] = 1 + tensor if is_norm else tensor
    return state


def write_vocabulary(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


def make_image_reward_folder(folder: Path, seed: int = 0) -> Path:
    torch.save(image_reward_state(seed), write_vocabulary(folder) / "ImageReward.pt")
    return folder


def make_compositional_folder(folder: Path) -> Path:
    (write_vocabulary(folder) / "reward_models").mkdir()
    for seed, name in enumerate(("attribute_binding", "spatial_relationship", "non_spatial_relationship")):
        torch.save(image_reward_state(seed), folder / "reward_models" / f"{name}.pt")
    return folder


def head_state(layout: str, width: int, seed: int = 0) -> dict[str, Tensor]:
    """One of LAION's heads: "linear", "mlp" or "relu"."""
    torch.manual_seed(seed)
    if layout == "linear":
        return torch.nn.Linear(width, 1).state_dict()
    numbers = {"mlp": (0, 2, 4, 6, 7), "relu": (0, 3, 6, 9, 11)}[layout]
    widths = (width, 1024, 128, 64, 16, 1)
    state = {}
    for number, inputs, outputs in zip(numbers, widths[:-1], widths[1:], strict=True):
        state[f"layers.{number}.weight"] = torch.randn(outputs, inputs) / inputs**0.5
        state[f"layers.{number}.bias"] = 0.3 * torch.randn(outputs)
    return state


def register_hps_architecture(folder: Path) -> str:
    """Tell open_clip of a small architecture, the way it offers."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small-hps.json").write_text(json.dumps(HPS_ARCHITECTURE))
    open_clip.add_model_config(folder / "small-hps.json")
    return "small-hps"


def make_hps_checkpoint(path: Path, seed: int = 0) -> Path:
    import open_clip

    torch.manual_seed(seed)
    model = open_clip.CLIP(**HPS_ARCHITECTURE)
    torch.save({"state_dict": {name: value.half() for name, value in model.state_dict().items()}}, path)
    return path


def make_pickscore_folder(folder: Path, seed: int = 0) -> Path:
    """`CLIPModel` and its processor's files, as yuvalkirstain/PickScore_v1 and laion/CLIP-ViT-H-14… have them."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = build_tokenizer(model_max_length=77)
    layers = {"num_hidden_layers": 2, "hidden_act": "gelu"}
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "vocab_size": len(tokenizer),
        **layers,
    }
    text |= {"bos_token_id": 0, "eos_token_id": 2}  # as in the public config: the end is where the id is highest
    vision = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision | layers, projection_dim=24)
    torch.manual_seed(seed)
    model = CLIPModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(3.7)
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {
        "crop_size": 32, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 32,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def write_sparse_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A safetensors file of float32 zeros that takes no room on a disk, whatever its size."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return path
