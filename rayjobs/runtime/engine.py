"""The DeepSpeed engine of a learner rank, and what DeepSpeed needs on machines without a C++ compiler or a GPU."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rayjobs.options import JobOptions
from sharpening.evaluation.cost import peak_rss
from sharpening.methods.base import Experience, Method
from sharpening.policies.base import Policy
from sharpening.startup import loading

if TYPE_CHECKING:
    from rayjobs.runtime.learner import LearnerSpec

logger = logging.getLogger(__name__)

TAG = "engine"
NO_COMPILER = "TORCHDYNAMO_DISABLE"


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
    module = load_module(spec)
    from rayjobs.runtime.lean_deepspeed import deepspeed

    parameters = module.policy.trainable()
    with without_compiled_kernels():
        engine, *_ = deepspeed.initialize(
            model=module, model_parameters=parameters, config=spec.deepspeed,
            optimizer=adam_of_8_bit(parameters, spec.options) if spec.options.use_8bit_adam else None,
        )  # fmt: skip
    return module, engine


@loading()  # not for what follows: DeepSpeed may have been told to turn the collector off for good
def load_module(spec: "LearnerSpec") -> LossModule:
    """Load the model, and DeepSpeed.

    Args:
        spec: What the learner is told.

    Returns:
        What DeepSpeed is to wrap.
    """
    os.environ.setdefault("DS_ACCELERATOR", spec.device)  # before the import: spares its search and its warning
    without_shared_memory_op(spec.device)

    from rayjobs.runtime.models import pipeline_folder
    from sharpening.methods import load_method
    from sharpening.policies import load_policy
    from sharpening.prepare import prepare

    if spec.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    options = spec.options
    # In bf16 DeepSpeed makes its float32 master weights of these: training starts at the very weights of the reference.
    dtype = torch.bfloat16 if options.mixed_precision == "bf16" else torch.float32
    policy = load_policy(pipeline_folder(spec.pipeline), spec.device, dtype, options.resolution, spec.vae)
    prepare(policy, options.training_options(), learns=True)
    return LossModule(policy, load_method(options.method, options.method_options()))


def adam_of_8_bit(parameters: list[nn.Parameter], options: JobOptions) -> Any:
    """AdamW whose moments take a byte each (bitsandbytes), which DeepSpeed wraps instead of its own.

    Args:
        parameters: What is trained.
        options: The run's options.

    Returns:
        The optimizer.
    """
    bitsandbytes = import_module("bitsandbytes")
    return bitsandbytes.optim.AdamW8bit(
        parameters, lr=options.learning_rate, betas=(options.adam_beta1, options.adam_beta2), eps=options.adam_epsilon,
        weight_decay=options.adam_weight_decay,
    )  # fmt: skip


@contextmanager
def without_compiled_kernels() -> Iterator[None]:
    """Keep what is imported in the block from decorating functions with `torch.compile`.

    To know whether an optimiser is its Muon, DeepSpeed imports Muon's kernels, and with them torch's whole compiler:
    seconds of every learner's start. A model that is to be compiled was told so before.

    Yields:
        Nothing.
    """
    told = os.environ.get(NO_COMPILER)
    os.environ[NO_COMPILER] = "1"
    try:
        yield
    finally:
        if told is None:
            del os.environ[NO_COMPILER]
        else:
            os.environ[NO_COMPILER] = told


def without_shared_memory_op(device: str) -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce.

    On a CPU it builds that C++ operator at the first use of its communication layer (half a minute, and a crash where
    there is no compiler). Only `inference_all_reduce` (tensor-parallel inference) calls it; ZeRO's collectives go
    through torch's process group in any case, so training loses nothing.

    Args:
        device: `cpu` or `cuda`.
    """
    from rayjobs.runtime.lean_deepspeed import deepspeed

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
    """Make every trained parameter whole on this rank while a block runs (ZeRO 3 keeps only a part of each).

    Args:
        engine: DeepSpeed's engine; all ranks enter together.

    Yields:
        Nothing.
    """
    if engine.zero_optimization_stage() < 3:
        yield
        return
    from rayjobs.runtime.lean_deepspeed import deepspeed

    trained = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    with deepspeed.zero.GatheredParameters(trained):
        yield


def save_state(engine: Any, folder: Path, update: int) -> None:
    """Write a checkpoint of the engine; weights that are not trained are not in it.

    Args:
        engine: DeepSpeed's engine; all ranks save together.
        folder: Where to.
        update: Updates applied.
    """
    frozen = any(not parameter.requires_grad for parameter in engine.module.parameters())
    engine.save_checkpoint(str(folder), tag=TAG, client_state={"update": update}, exclude_frozen_parameters=frozen)


def load_state(engine: Any, folder: Path) -> None:
    """Read a checkpoint of the engine.

    Args:
        engine: DeepSpeed's engine; all ranks load together.
        folder: Where `save_state` wrote.

    Raises:
        RuntimeError: If there is none.
    """
    frozen = any(not parameter.requires_grad for parameter in engine.module.parameters())
    loaded, _ = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=not frozen)
    if loaded is None:
        raise RuntimeError(f"{folder} holds no DeepSpeed state; resume from an older checkpoint")


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
