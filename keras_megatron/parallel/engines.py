"""Which engine makes Keras honour a distribution on the active backend."""

import functools

import keras

from keras_megatron.parallel.engine_base import Engine


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
