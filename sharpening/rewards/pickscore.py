"""PickScore (Kirstain et al., arXiv 2305.01569): CLIP ViT-H/14 fine-tuned on the choices of Pick-a-Pic's users.

As in `github.com/yuvalkirstain/PickScore` (README, "Inference with PickScore").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharpening.rewards.base import RewardModelError
from sharpening.rewards.layouts import CHECKPOINT, MODEL, some
from sharpening.rewards.pickscore_files import PROCESSOR, REPOSITORY, check_folder
from sharpening.rewards.preprocessing import Preprocessing
from sharpening.rewards.scorer import CosineScorer, unit
from sharpening.rewards.weights import one_line, read_weights, weights_file

_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, as processors have them
_MAX_LENGTH = 77


class PickScorer(CosineScorer):
    """PickScore of images: `exp(logit_scale)` × cosine, with the published model 100 × cosine, about 15 to 25.

    A difference of 1 between two images says that people prefer the better one with probability `σ(1)`, 73 %.
    """

    def __init__(
        self,
        model: str = REPOSITORY,
        checkpoint: str | None = None,
        device: str = "cpu",
        batch_size: int = 32,
        processor: str | None = None,
    ) -> None:
        """Load the model.

        Args:
            model: folder or hub id of a transformers `CLIPModel`.
            checkpoint: weights in place of the model's own: a file, a folder, `owner/name` or `owner/name:file` of the
                hub.
            device: torch device.
            batch_size: images of a forward pass; a request is padded to a multiple of it.
            processor: folder or hub id of tokenizer and image processor; None: a folder's own, for a hub id those the
                model was published with.

        Raises:
            RewardModelError: if the model cannot be loaded.
            ValueError: if `batch_size` is below 1.
        """  # noqa: DOC502
        check_folder(model, weights=checkpoint is None)
        folder, place = Path(model).expanduser(), torch.device(device)
        own = folder.is_dir()
        model = str(folder) if own else model
        self._model = load_clip_model(model, checkpoint).to(place)
        self._scale = float(self._model.logit_scale.exp())
        self._tokenizer, preprocessing = load_processor(processor or (model if own else PROCESSOR))
        self._max_length = min(_MAX_LENGTH, self._model.config.text_config.max_position_embeddings)
        super().__init__(preprocessing, place, batch_size)

    def _features(self, pixels: Tensor) -> Tensor:
        return self._model.get_image_features(pixel_values=pixels).pooler_output

    def _encode_prompt(self, prompt: str) -> np.ndarray:
        tokens = self._tokenizer(prompt, truncation=True, max_length=self._max_length, return_tensors="pt")
        with torch.inference_mode():
            embedding = self._model.get_text_features(
                input_ids=tokens["input_ids"].to(self._device), attention_mask=tokens["attention_mask"].to(self._device)
            ).pooler_output
        with np.errstate(invalid="ignore", divide="ignore"):
            return unit(embedding.double().cpu().numpy())[0]


def load_clip_model(model: str, checkpoint: str | None) -> Any:
    """Load a transformers CLIP, frozen and in evaluation mode.

    Args:
        model: folder or hub id.
        checkpoint: weights in place of the model's own; None: the model's.

    Returns:
        The `CLIPModel`, in float32 on the CPU.

    Raises:
        RewardModelError: if it does not load, or weights are missing or left over.
    """
    from transformers import CLIPConfig, CLIPModel

    option, where = (CHECKPOINT, checkpoint) if checkpoint else (MODEL, model)
    # Shapes that do not fit are told like what is missing: `check_loaded` refuses both.
    how = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    path = weights_file(checkpoint, CHECKPOINT) if checkpoint else None
    weights = None if path is None else read_weights(path)
    try:
        if weights is None:
            loaded, info = CLIPModel.from_pretrained(model, **how)
        else:
            config = CLIPConfig.from_pretrained(model)
            loaded, info = CLIPModel.from_pretrained(None, config=config, state_dict=weights, **how)
    except Exception as error:  # transformers raises whatever it meets
        raise RewardModelError(
            f"{where} does not load as a CLIPModel ({one_line(error)}); pass another one as --{option}", option
        ) from error
    check_loaded(str(where), info, option)
    return loaded.eval().requires_grad_(False)


def check_loaded(where: str, info: dict[str, Any], option: str) -> None:
    """Refuse a model of which transformers did not find every tensor, which it would leave random.

    Args:
        where: what was loaded, for the message.
        info: transformers' loading info.
        option: the option that names it.

    Raises:
        RewardModelError: naming a tensor that is missing, of another shape or unexpected.
    """
    remedy = f"pass the weights of a transformers CLIPModel of this configuration as --{option}"
    unexpected = sorted(name for name in info["unexpected_keys"] if not name.endswith("position_ids"))
    mismatched = [name if isinstance(name, str) else name[0] for name in info["mismatched_keys"]]
    for what, names in (
        ("lacks", sorted(info["missing_keys"])),
        ("has another shape of", sorted(mismatched)),
        ("holds, where no CLIPModel does,", unexpected),
    ):
        if names:
            raise RewardModelError(f"{where} {what} {some(names)}; {remedy}", option)


def load_processor(where: str) -> tuple[Any, Preprocessing]:
    """A model's tokenizer, and the transform of its images.

    Args:
        where: folder or hub id.

    Returns:
        Both.

    Raises:
        RewardModelError: if they do not load, or images are prepared in another way than CLIP's.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(where)
        images, tokenizer = processor.image_processor, processor.tokenizer
        edge, crop = images.size["shortest_edge"], (images.crop_size["height"], images.crop_size["width"])
        interpolation = _INTERPOLATIONS[int(images.resample)]
    except Exception as error:  # transformers raises whatever it meets
        raise RewardModelError(
            f"{where} holds no processor of a CLIP ({one_line(error)}); pass another --{MODEL}"
        ) from error
    if crop != (edge, edge):
        raise RewardModelError(f"{where} crops images to {crop} after resizing to {edge}; pass another --{MODEL}")
    return tokenizer, Preprocessing(
        edge, images.image_mean, images.image_std, interpolation=interpolation, floor_crop=True
    )
