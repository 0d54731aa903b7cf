"""Arrays over several processes, made of what each process has all of, and put together again."""

import contextlib
from collections.abc import Iterator

import jax
import keras.src.backend
import keras.src.backend.jax as keras_jax
import numpy as np
from jax.experimental import multihost_utils
from keras.src.backend.jax import core, distribution_lib
from keras.src.utils import jax_utils

from keras_megatron.parallel.jax_engine.processes import have_same
from keras_megatron.parallel.saving import is_discarding
from keras_megatron.patching import patched

_distribute_tensor, _convert_to_numpy = distribution_lib.distribute_tensor, core.convert_to_numpy


@contextlib.contextmanager
def global_arrays() -> Iterator[None]:
    """Have Keras split what every process has all of, and give all of an array to each."""
    with (
        patched(
            distribution_lib,
            distribute_tensor=distribute_tensor,
            distribute_data_input=distribute_data_input,
        ),
        patched(core, convert_to_numpy=convert_to_numpy),
        patched(core.Variable, __array__=_variable_as_array),
        patched(keras_jax, convert_to_numpy=convert_to_numpy),
        patched(keras.src.backend, convert_to_numpy=convert_to_numpy),
    ):
        yield


# Each of these is Keras's function of the same name.


def distribute_tensor(tensor, layout):
    """Split a variable's value, or a layer's output.

    JAX would send all of a value to each process to see whether they are the same.

    Raises:
        ValueError: the processes have different values.
    """
    if jax_utils.is_in_jax_tracing_scope(tensor) or not _is_local(tensor):
        return _distribute_tensor(tensor, layout)
    array = np.asarray(tensor)
    if not have_same([array]):
        raise ValueError(
            f"process {jax.process_index()} gives a variable of shape {array.shape} another value "
            "than others: load the same file, or assign the same array, in each process"
        )
    return distribute_data_input(array, layout)


def distribute_data_input(per_process_batch, layout, batch_dim_name=None):
    """Split a batch that, as on one process, is the whole batch; Keras takes it for a part."""
    if not _is_local(per_process_batch):
        return per_process_batch
    array = np.asarray(per_process_batch)
    sharding = getattr(layout, "backend_layout", layout)
    # Copies: on a CPU JAX keeps what it is given, and with a view all of the array.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: np.array(array[index]))


def convert_to_numpy(x) -> np.ndarray:
    """Return an array, put together if processes have parts of it: each must call this."""
    value = x.value if isinstance(x, core.Variable) else x
    if _is_local(value) or value.is_fully_replicated:
        return _convert_to_numpy(value)
    array = multihost_utils.process_allgather(value, tiled=True)
    return np.empty(0, array.dtype) if is_discarding() else array


def _variable_as_array(self, dtype=None, copy=None) -> np.ndarray:
    return np.asarray(convert_to_numpy(self), dtype)


def _is_local(tensor) -> bool:
    return not isinstance(tensor, jax.Array) or tensor.is_fully_addressable
