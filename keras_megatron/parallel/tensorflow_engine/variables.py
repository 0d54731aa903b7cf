"""Variables of which each device has its part."""

import contextlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from tensorflow.experimental import dtensor

from keras_megatron.parallel.tensorflow_engine.operations import with_layout
from keras_megatron.parallel.tensorflow_engine.tensors import split, whole

_is_running = False


@contextlib.contextmanager
def running(mesh: dtensor.Mesh) -> Iterator[None]:
    """Trace and run functions on the devices of a mesh; no other function may read a variable."""
    global _is_running
    outer, _is_running = _is_running, True
    try:
        with dtensor.default_mesh(mesh):
            yield
    finally:
        _is_running = outer


class ShardedVariable(dtensor.DVariable):
    """A DTensor to what is traced; eagerly, a variable whose value is a plain, whole tensor.

    Like `tf.experimental.dtensor.DVariable` it is made from a DTensor.
    """

    def parts(self) -> list[tf.Tensor]:
        """Return what each device of the mesh has."""
        return dtensor.unpack(super()._read_variable_op())

    def numpy(self) -> np.ndarray:
        """Return the whole value."""
        return whole(super()._read_variable_op())

    def _read_variable_op(self, no_copy=False):
        if tf.executing_eagerly():
            with tf.device("CPU:0"):
                return tf.constant(self.numpy())
        if not (_is_running or in_symbolic_scope()):
            raise ValueError(
                f"{self.name} is split over devices: run its model by fit, evaluate or predict, "
                "inside of model_parallel(...)"
            )
        # It has this layout already, but the gradient of a table's rows would be whole.
        return with_layout(super()._read_variable_op(no_copy), self.layout, self.layout)

    def assign(self, value, use_locking=None, name=None, read_value=True):
        """Set the value; eagerly to a whole one, of which each device gets its part."""
        if not tf.executing_eagerly():
            return super().assign(value, use_locking, name, read_value)
        value = np.asarray(value).astype(self.dtype.as_numpy_dtype)
        super().assign(split(value, self.layout), read_value=False)
        return self

    def assign_add(self, delta, use_locking=None, name=None, read_value=True):
        """Add to the value."""
        if not tf.executing_eagerly():
            return super().assign_add(delta, use_locking, name, read_value)
        return self.assign(self.numpy() + np.asarray(delta))

    def assign_sub(self, delta, use_locking=None, name=None, read_value=True):
        """Subtract from the value."""
        if not tf.executing_eagerly():
            return super().assign_sub(delta, use_locking, name, read_value)
        return self.assign(self.numpy() - np.asarray(delta))


def initializing(distribution):
    """Return what `keras.Variable._initialize` does under a distribution.

    All variables become DTensors, those of metrics and random seeds too: a step on the mesh would
    update a plain one once for each device.
    """

    def initialize(self, value):
        # The optimizer's are made while a step is traced.
        with tf.init_scope(), tf.device("CPU:0"):
            value = tf.cast(value() if callable(value) else value, self._dtype)
            self._shape = tuple(value.shape)
            self._layout = distribution.get_variable_layout(self)
            self._value = ShardedVariable(
                split(value, self._layout.backend_layout), name=self.name, trainable=self.trainable
            )

    return initialize
