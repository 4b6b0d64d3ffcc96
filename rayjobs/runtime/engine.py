"""The DeepSpeed engine of a learner rank, and what DeepSpeed needs on machines without a C++ compiler or a GPU."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sharpening.evaluation.cost import peak_rss
from sharpening.methods.base import Experience, Method
from sharpening.policies.base import Policy

if TYPE_CHECKING:
    from rayjobs.runtime.learner import LearnerSpec

logger = logging.getLogger(__name__)


class LossModule(nn.Module):
    """A method's loss as a module whose parameters are the policy's denoiser: what DeepSpeed wraps.

    Args:
        policy: The model.
        method: Whose loss.
    """

    def __init__(self, policy: Policy, method: Method) -> None:
        super().__init__()
        self.denoiser = policy.denoiser
        self.policy = policy
        self.metrics: dict[str, float] = {}
        self.method = method

    def forward(self, experience: Experience) -> Tensor:
        """The loss of some groups.

        Args:
            experience: The groups.

        Returns:
            Scalar, the mean over them; its metrics are left in `metrics`.
        """
        loss = self.method.loss(self.policy, experience)
        self.metrics = loss.metrics
        return loss.value


def build_engine(spec: "LearnerSpec") -> tuple[LossModule, Any]:
    """Load the model and put DeepSpeed around it.

    Args:
        spec: What the learner is told.

    Returns:
        The wrapped module and the engine.
    """
    os.environ.setdefault("DS_ACCELERATOR", spec.device)  # before the import: spares its search and its warning
    import deepspeed

    from rayjobs.runtime.models import pipeline_folder
    from sharpening.methods import load_method
    from sharpening.policies import load_policy

    without_shared_memory_op(spec.device)
    if spec.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    policy = load_policy(pipeline_folder(spec.pipeline), spec.device)
    policy.denoiser.requires_grad_(True)
    module = LossModule(policy, load_method(spec.options.method, spec.options.method_options()))
    engine, *_ = deepspeed.initialize(
        model=module, model_parameters=list(policy.denoiser.parameters()), config=spec.deepspeed
    )
    return module, engine


def without_shared_memory_op(device: str) -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce.

    On a CPU it builds that C++ operator at the first use of its communication layer (half a minute, and a crash where
    there is no compiler). Only `inference_all_reduce` (tensor-parallel inference) calls it; ZeRO's collectives go
    through torch's process group in any case, so training loses nothing.

    Args:
        device: `cpu` or `cuda`.
    """
    import deepspeed.ops

    if device != "cpu":
        return
    # The dict is made once, on first access, and DeepSpeed reads it before it builds anything.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def apply_gradients(engine: Any) -> float:
    """The optimizer step of an update, after its last backward pass.

    Args:
        engine: DeepSpeed's engine.

    Returns:
        Norm of the gradient before clipping, over all ranks.
    """
    # ZeRO's and bf16's optimizers tell the norm after the step; plain fp32 (stage 0) never does.
    plain = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    before = torch.nn.utils.get_total_norm(plain) if engine.zero_optimization_stage() == 0 and plain else None
    engine.step()
    told = engine.get_global_grad_norm()
    return float(told if told is not None else before if before is not None else 0.0)


@contextmanager
def whole_weights(engine: Any) -> Iterator[None]:
    """Make every parameter whole on this rank while a block runs (ZeRO 3 keeps only a part of each).

    Args:
        engine: DeepSpeed's engine; all ranks enter together.

    Yields:
        Nothing.
    """
    if engine.zero_optimization_stage() < 3:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        yield


def memory(device: str) -> dict[str, int]:
    """Peak memory of this process.

    Args:
        device: `cpu` or `cuda`.

    Returns:
        `peak_memory_learner` in bytes, and `peak_memory_learner_gpu` where there is one.
    """
    peak = {"peak_memory_learner": peak_rss()}
    if device == "cuda":
        peak["peak_memory_learner_gpu"] = torch.cuda.max_memory_allocated()
    return peak
