"""Options of the optimiser: AdamW under DeepSpeed, and what one update is made of. Nothing heavy is imported."""

from rayjobs.options.declaring import Options, option
from sharpening.options import TrainingOptions
from sharpening.options.training import Scheduler

TRAINING = TrainingOptions()


class OptimiserOptions(Options):
    """How the denoiser's weights are learnt; defaults are those of the in-process loop."""

    train_batch_size: int = option(
        TRAINING.train_batch_size,
        "optimiser",
        "groups a device",
        "groups (a prompt at a timestep) in one forward and backward pass",
        ge=1,
    )
    inner_steps: int = option(
        TRAINING.inner_steps, "optimiser", "steps an update", "optimiser steps made from one update's experience", ge=1
    )
    gradient_accumulation_steps: int | None = option(
        None, "optimiser", "passes a step", "checked against the value that the other options give", "-",
        "groups an update / (num_learners × train_batch_size × inner_steps)", ge=1,
    )  # fmt: skip
    max_train_steps: int = option(
        TRAINING.updates, "optimiser", "updates", "optimiser updates in the whole run", resume=False, ge=1
    )
    learning_rate: float = option(
        TRAINING.learning_rate, "optimiser", "-", "AdamW's step size (paper: 5e-6 for SDXL)", gt=0
    )
    lr_scheduler: Scheduler = option(
        TRAINING.lr_scheduler, "optimiser", "-", "shape of the learning rate over the updates"
    )
    lr_warmup_steps: int = option(
        TRAINING.lr_warmup_steps, "optimiser", "updates", "updates over which the learning rate rises", ge=0
    )
    lr_num_cycles: int = option(
        TRAINING.lr_num_cycles, "optimiser", "half cosines", "of cosine_with_restarts, each begins at the full rate",
        ge=1,
    )  # fmt: skip
    lr_power: float = option(TRAINING.lr_power, "optimiser", "-", "exponent of polynomial", gt=0)
    adam_beta1: float = option(
        TRAINING.adam_beta1, "optimiser", "-", "decay of the gradient's mean (paper: 0)", "β₁", ge=0, lt=1
    )
    adam_beta2: float = option(
        TRAINING.adam_beta2, "optimiser", "-", "decay of the gradient's square", "β₂", ge=0, lt=1
    )
    adam_weight_decay: float = option(
        TRAINING.adam_weight_decay, "optimiser", "1 / update", "AdamW's weight decay over step size", ge=0
    )
    adam_epsilon: float = option(TRAINING.adam_epsilon, "optimiser", "-", "AdamW's denominator offset", gt=0)
    max_grad_norm: float = option(
        TRAINING.max_grad_norm, "optimiser", "-", "gradient norm above which it is scaled down", gt=0
    )
    use_ema: bool = option(
        TRAINING.use_ema, "optimiser", "switch",
        "average the trained weights over the updates; the final pipeline and the last evaluation have the average, "
        "rollouts the weights themselves",
    )  # fmt: skip
    ema_decay: float = option(
        TRAINING.ema_decay, "optimiser", "1 / update", "largest decay of that average (EMAModel's, which starts lower)",
        ge=0, lt=1,
    )  # fmt: skip
    gradient_checkpointing: bool = option(
        TRAINING.gradient_checkpointing, "optimiser", "switch",
        "compute the denoiser's activations again in the backward pass: less memory, the same gradients", resume=False,
    )  # fmt: skip
    torch_compile: bool = option(
        TRAINING.torch_compile, "optimiser", "switch",
        "compile the denoiser, in learners and actors; needs a C++ compiler and a minute or more at the first update",
    )  # fmt: skip
    use_8bit_adam: bool = option(
        False, "optimiser", "switch", "AdamW with moments in 8 bit; needs bitsandbytes and a GPU"
    )  # fmt: skip
    deepspeed_config: str | None = option(
        None, "optimiser", "JSON file", "DeepSpeed configuration (ZeRO stage); 'auto' takes the flags' values", "-",
        "cluster/deepspeed_cpu.json or cluster/deepspeed_gpu.json",
    )  # fmt: skip
