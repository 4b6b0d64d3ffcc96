"""Human Preference Score v2 and v2.1 (Wu et al., arXiv 2306.09341): CLIP ViT-H/14 fine-tuned on people's choices.

As in `github.com/tgxs002/HPSv2` (`hpsv2/img_score.py`, `hpsv2/src/open_clip/transform.py`), whose checkpoints are
open_clip's under `state_dict`. Its package is not needed: it pins an old protobuf, and comes without its tokenizer's
vocabulary.
"""

from __future__ import annotations

from sharpening.rewards.clip import ClipScorer
from sharpening.rewards.hpsv2_files import ARCHITECTURE, WEIGHTS
from sharpening.rewards.layouts import CHECKPOINT
from sharpening.rewards.weights import weights_file


class HpsScorer(ClipScorer):
    """HPS of images: 100 × cosine, as the benchmark's tables have it; `hpsv2.score` leaves out the 100.

    Published, images are first made floats and then resized, so that bicubic is neither rounded nor cut off at black
    and white; so they are here. Scores are taken in float32, where the package takes half precision on a GPU.
    """

    _exact_resize = True

    def __init__(
        self, model: str = ARCHITECTURE, checkpoint: str | None = None, device: str = "cpu", batch_size: int = 32
    ) -> None:
        """Load the model.

        Args:
            model: open_clip architecture of the checkpoint, or a folder or hub id in open_clip's layout, which has
                weights of its own.
            checkpoint: a file, a folder, `owner/name` or `owner/name:file` of the hub; None: HPS v2.1.
            device: torch device.
            batch_size: images of a forward pass; a request is padded to a multiple of it.

        Raises:
            RewardModelError: if the model cannot be loaded.
            ValueError: if `batch_size` is below 1.
        """  # noqa: DOC502
        from sharpening.rewards.lean_open_clip import open_clip

        if checkpoint is None and model in open_clip.list_models():
            checkpoint = WEIGHTS
        if checkpoint is not None:
            checkpoint = str(weights_file(checkpoint, CHECKPOINT))
        super().__init__(model, checkpoint, device, batch_size)
