"""What TensorFlow needs for model parallelism, on DTensor: one process, several devices.

Imported only where TensorFlow is the backend. To the code of a traced step a variable is a DTensor,
of which each device has its part; to all other code, which runs eagerly (saving and loading,
metrics' results, callbacks), it is the plain variable that it would be without any of this. So the
host has one whole variable at a time. A layer that is called eagerly, instead of by `predict` and
its like, would be computed there as a whole: that is an error.
"""

import contextlib
from collections.abc import Iterator

import keras
from keras.src.backend.tensorflow import core, distribution_lib, numpy, random
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer
from keras.src.optimizers import base_optimizer

from keras_megatron.parallel.engine_base import Engine
from keras_megatron.parallel.tensorflow_engine import operations, steps, tensors
from keras_megatron.parallel.tensorflow_engine.devices import make_cpu_devices
from keras_megatron.parallel.tensorflow_engine.environment import environment
from keras_megatron.parallel.tensorflow_engine.refusals import refusals
from keras_megatron.parallel.tensorflow_engine.variables import ShardedVariable, initializing
from keras_megatron.patching import patched

__all__ = ["ShardedVariable", "TensorFlowEngine", "is_native", "make_cpu_devices"]


def is_native() -> bool:
    """Say whether this version of Keras shards on TensorFlow itself."""
    return hasattr(distribution_lib, "distribute_variable")


class TensorFlowEngine(Engine):
    """Model parallelism by `tf.experimental.dtensor`."""

    more_devices = (
        "give other numbers; on a CPU, make_cpu_devices(N) of "
        "keras_megatron.parallel.tensorflow_engine makes N, before TensorFlow is first used"
    )

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Give Keras meshes of DTensor, and a way to lay out the output of a layer."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(environment(steps.COMBINE_ALL_REDUCES, "0"))
            for name, function in (
                ("_to_backend_mesh", tensors.backend_mesh),
                ("distribute_tensor", operations.distribute_tensor),
            ):
                stack.enter_context(patched(distribution_lib, **{name: function}))
            yield

    @contextlib.contextmanager
    def active(self, distribution) -> Iterator[None]:
        """Make variables of DTensors, run steps on the mesh, keep split logits split."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(refusals())
            stack.enter_context(patched(core.Variable, _initialize=initializing(distribution)))
            for name in ("make_train_function", "make_test_function", "make_predict_function"):
                function = getattr(steps, name)(distribution)
                stack.enter_context(patched(TensorFlowTrainer, **{name: function}))
            for module, name in (
                (numpy, "argmax"),
                (numpy, "take"),
                (numpy, "flip"),
                (base_optimizer, "global_norm"),
            ):
                function = getattr(operations, name)(getattr(module, name))
                stack.enter_context(patched(module, **{name: function}))
            mesh = distribution.device_mesh.backend_mesh
            drop = operations.dropout(random.dropout, mesh)
            stack.enter_context(patched(random, dropout=drop))
            yield

    def local_shape(self, variable: keras.Variable) -> tuple[int, ...]:
        """Return the shape of what a device holds of a variable, which may be all of it."""
        value = variable.value
        parts = value.parts() if isinstance(value, ShardedVariable) else [value]
        return tuple(parts[0].shape)
