"""Which engine makes Keras honour a distribution on the active backend."""

import contextlib
import functools
from collections.abc import Iterator

import keras


class Engine:
    """What a backend needs beside Keras's own; nothing where Keras has all.

    Attributes:
        more_devices: how to get more devices, for an error.
    """

    more_devices = "give other numbers"

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Give Keras what it lacks: devices, meshes and layouts of this backend."""
        yield

    @contextlib.contextmanager
    def active(self, distribution) -> Iterator[None]:
        """Have variables and batches laid out as a distribution says."""
        yield

    def local_shape(self, variable: keras.Variable) -> tuple[int, ...]:
        """Return the shape of what a device holds of a variable, which may be all of it."""
        return tuple(variable.shape)


@functools.cache
def engine() -> Engine:
    """Return the engine of the active backend.

    Raises:
        ValueError: there is none.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        from keras_megatron.parallel.jax_engine import JaxEngine

        return JaxEngine()
    if backend == "torch":
        from keras_megatron.parallel.torch_engine import TorchEngine

        return TorchEngine()
    if backend == "tensorflow":
        from keras_megatron.parallel.tensorflow_engine import TensorFlowEngine, is_native

        return Engine() if is_native() else TensorFlowEngine()
    raise ValueError(f"there is no model parallelism on the backend {backend!r}")
