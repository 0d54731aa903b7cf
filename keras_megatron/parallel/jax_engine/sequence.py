"""Sequence parallelism on JAX: outputs are summed over devices before they are split."""

import contextlib
from collections.abc import Iterator

import keras
from keras.src.backend.jax import distribution_lib
from keras.src.utils import jax_utils

from keras_megatron.patching import patched


@contextlib.contextmanager
def summed_before_split(distribution) -> Iterator[None]:
    """Have a block's output, split over the sequence, come from products split as without that.

    Left to itself XLA would split the products over the sequence too: attention would be sent from
    heads to positions and back, and the table of words gathered.
    """
    distribute_tensor = distribution_lib.distribute_tensor

    def distribute(tensor, layout):
        axes = getattr(layout, "axes", ())
        if (
            len(axes) == 3
            and axes[0] == distribution.batch_dim_name
            and axes[1] is not None
            and jax_utils.is_in_jax_tracing_scope(tensor)
        ):
            whole = keras.distribution.TensorLayout((axes[0], None, axes[2]), layout.device_mesh)
            tensor = distribute_tensor(tensor, whole)
        return distribute_tensor(tensor, layout)

    with patched(distribution_lib, distribute_tensor=distribute):
        yield
