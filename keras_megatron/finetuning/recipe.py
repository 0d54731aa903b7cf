"""The paper's fine-tuning recipe: the optimizer, its learning rates, and numbers for each task."""

import dataclasses
import math

import keras
from keras import ops

from keras_megatron.finetuning.optimizer import DenseAdamW


@keras.saving.register_keras_serializable(package="keras_megatron")
class LinearWarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly to a peak, then falls linearly to a floor.

    As in Megatron-LM (`OptimizerParamScheduler`, style "linear") the first step's rate is 0 if
    there is a warm-up, and step `warmup_steps` (from 0) has the peak.

    Args:
        peak: float. The highest rate.
        total_steps: int. Steps until the floor, warm-up included.
        warmup_steps: int. Steps until the peak.
        floor: float. The rate from `total_steps` on.

    Raises:
        ValueError: a rate is negative, the floor is above the peak, or the warm-up does not end
            before `total_steps`.
    """

    def __init__(self, peak: float, total_steps: int, warmup_steps: int = 0, floor: float = 0.0):
        super().__init__()
        if not 0 <= floor <= peak:
            raise ValueError(f"the floor must be from 0 to the peak, {peak}, not {floor}")
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(
                f"warmup_steps must be from 0 to less than total_steps, {total_steps}, not "
                f"{warmup_steps}"
            )
        self.peak = peak
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.floor = floor

    def __call__(self, step):
        """Return the rate of a step, counted from 0."""
        step = ops.cast(step, "float32")
        rising = self.peak * step / max(1, self.warmup_steps)
        left = (self.total_steps - step) / (self.total_steps - self.warmup_steps)
        falling = self.floor + (self.peak - self.floor) * ops.maximum(left, 0.0)
        return ops.where(step < self.warmup_steps, rising, falling)

    def get_config(self):
        """Return the arguments of the constructor."""
        return {
            "peak": self.peak,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "floor": self.floor,
        }


def linear_schedule(
    learning_rate: float, total_steps: int, warmup: float = 0.06, floor: float = 0.0
) -> LinearWarmupDecay:
    """Make a schedule whose warm-up is a share of the steps, see `adamw`.

    Raises:
        ValueError: a number is out of range.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, not {total_steps}")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a share of the steps, from 0 to less than 1, not {warmup}")
    return LinearWarmupDecay(learning_rate, total_steps, int(warmup * total_steps), floor)


def adamw(
    learning_rate: float,
    total_steps: int,
    warmup: float = 0.06,
    weight_decay: float = 0.01,
    floor: float = 0.0,
    clip: float | None = 1.0,
    gradient_accumulation_steps: int | None = None,
) -> keras.optimizers.AdamW:
    """Make the optimizer of BERT's fine-tuning.

    AdamW with betas 0.9 and 0.999 and epsilon 1e-8, gradients clipped to a global norm, a linear
    warm-up and decay of the rate, and no weight decay of LayerNorms and biases (embeddings decay).

    Args:
        learning_rate: the peak.
        total_steps: steps of the whole training.
        warmup: share of the steps in which the rate rises.
        weight_decay: rate of the decay, decoupled from the gradient, times the learning rate.
        floor: the rate at the end.
        clip: largest global norm of the gradients; None clips nothing.
        gradient_accumulation_steps: parts of a batch whose gradients make one step.

    Returns:
        An optimizer for `compile`. What it leaves out of the decay is not in its `get_config`: make
        it anew for a model that was saved in the middle of its training.

    Raises:
        ValueError: a number is out of range.
    """
    _check_weight_decay(weight_decay)
    schedule = linear_schedule(learning_rate, total_steps, warmup, floor)
    optimizer = DenseAdamW(
        schedule,
        weight_decay=weight_decay,
        epsilon=1e-8,
        global_clipnorm=clip,
        gradient_accumulation_steps=gradient_accumulation_steps,
    )
    # Keras searches for this in the names of variables; on TensorFlow they may end in ":0".
    optimizer.exclude_from_weight_decay(var_names=[r"(^|/)(bias|gamma|beta)(:\d+)?$"])
    return optimizer


def _check_weight_decay(weight_decay: float) -> None:
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be finite and not negative, but is {weight_decay}")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to fine-tune on one task.

    Attributes:
        learning_rate: the peak, see `adamw`.
        batch_size: samples a step.
        epochs: times through the data.
        warmup: share of the steps in which the rate rises.
        weight_decay: see `adamw`.

    Raises:
        ValueError: a number is out of range.
    """

    learning_rate: float
    batch_size: int
    epochs: int
    warmup: float = 0.06
    weight_decay: float = 0.01

    def __post_init__(self):
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, not {self.learning_rate}")
        for name in ("batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        # An optimizer would check both, but has variables, which would start JAX at import.
        self.schedule(total_steps=1)
        _check_weight_decay(self.weight_decay)

    def schedule(self, total_steps: int) -> LinearWarmupDecay:
        """Make the learning rates of so many steps."""
        return linear_schedule(self.learning_rate, total_steps, self.warmup)

    def optimizer(self, total_steps: int) -> keras.optimizers.AdamW:
        """Make the optimizer for so many steps."""
        return adamw(self.learning_rate, total_steps, self.warmup, self.weight_decay)


# Batch, rate and epochs: arXiv 1909.08053 v4, table 6. It gives no warm-up and no weight decay for
# fine-tuning: 6 % is RoBERTa's (arXiv 1907.11692, table 10), 0.01 is that of the pretraining.
RECIPES: dict[str, Recipe] = {
    "mnli-336m": Recipe(learning_rate=1e-5, batch_size=128, epochs=10),
    "mnli-1.3b": Recipe(learning_rate=1e-5, batch_size=128, epochs=10),
    "mnli-3.9b": Recipe(learning_rate=1e-5, batch_size=128, epochs=10),
    "qqp-336m": Recipe(learning_rate=5e-5, batch_size=128, epochs=12),
    "qqp-1.3b": Recipe(learning_rate=3e-5, batch_size=128, epochs=12),
    "qqp-3.9b": Recipe(learning_rate=4e-5, batch_size=256, epochs=12),
    "squad1.1-336m": Recipe(learning_rate=3e-5, batch_size=64, epochs=2),
    "squad1.1-1.3b": Recipe(learning_rate=3e-5, batch_size=48, epochs=2),
    "squad1.1-3.9b": Recipe(learning_rate=1e-5, batch_size=48, epochs=2),
    "squad2.0-336m": Recipe(learning_rate=3e-5, batch_size=48, epochs=2),
    "squad2.0-1.3b": Recipe(learning_rate=3e-5, batch_size=64, epochs=2),
    "squad2.0-3.9b": Recipe(learning_rate=1e-5, batch_size=48, epochs=2),
    "race-336m": Recipe(learning_rate=2e-5, batch_size=32, epochs=3),
    "race-1.3b": Recipe(learning_rate=1e-5, batch_size=16, epochs=3),
    "race-3.9b": Recipe(learning_rate=2e-5, batch_size=32, epochs=3),
    # For tasks that the paper does not have.
    "default": Recipe(learning_rate=5e-5, batch_size=32, epochs=3),
}
