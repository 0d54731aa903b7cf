"""Dropout on PyTorch on a CPU, whose own draws one number after the other from a slow generator."""

import keras
import torch

from keras_megatron.layers.common import is_recomputed

_VALUES = 2**16  # of the numbers that are drawn
_MOST_ROUNDED = 1e-3  # of a rate, for which these are enough
_WORTHWHILE = 2**14  # elements


@keras.saving.register_keras_serializable(package="keras_megatron")
class Dropout(keras.layers.Dropout):
    """Keras's dropout, which on a CPU drops by 16 random bits an element.

    PyTorch's generator makes 64 bits at a time: it is 5 times as fast as PyTorch's dropout. A rate
    is rounded to 1 / 65,536; what is kept is scaled by the rounded one. The numbers are those of
    PyTorch's own generator, as of all dropout without a seed.
    """

    def call(self, inputs, training=False):
        """Drop out; see `keras.layers.Dropout`."""
        dropped = round(self.rate * _VALUES)
        if (
            not training
            or type(inputs) is not torch.Tensor
            or inputs.device.type != "cpu"
            or inputs.numel() < _WORTHWHILE
            or self.seed is not None
            or self.noise_shape is not None
            or not inputs.is_floating_point()
            or dropped == _VALUES
            or is_recomputed()  # to save memory, of which this leaves a fifth more in pieces
            or abs(dropped / _VALUES - self.rate) > _MOST_ROUNDED * self.rate
            or keras.distribution.distribution() is not None
        ):
            return super().call(inputs, training=training)
        scale = _VALUES / (_VALUES - dropped)
        kept = _kept(inputs, dropped)
        if inputs.dtype == torch.float32:
            return inputs * kept.mul_(scale)
        return inputs * kept * scale  # the scale itself would be rounded to the inputs' type


@torch.no_grad()
def _kept(inputs: torch.Tensor, dropped: int) -> torch.Tensor:
    """Return 0 for `dropped` of 65,536 elements, and 1 for the others."""
    count = inputs.numel()
    numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = numbers.view(torch.int16)[:count].view(inputs.shape)
    return (bits >= dropped - _VALUES // 2).to(inputs.dtype)
