"""Steps of training, evaluation and prediction, on a mesh of devices."""

import itertools
import os
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from keras_megatron.parallel.batches import cut, filled_up
from keras_megatron.parallel.tensorflow_engine.tensors import split, whole
from keras_megatron.parallel.tensorflow_engine.variables import running

# DTensor's "optimization" that puts all-reduces together moves some behind what needs them: with
# gradients that are clipped, Adam reads its slots before they are updated, in silence.
COMBINE_ALL_REDUCES = "DTENSOR_ENABLE_COMBINE_ALL_REDUCES_OPTIMIZATION"


def make_train_function(distribution) -> Callable:
    """Return what `keras.Model.make_train_function` does under a distribution."""

    def make(self, force=False):
        if self.train_function is None or force:
            self.train_function = _on_iterator(self, Step(self, self.train_step, distribution))

    return make


def make_test_function(distribution) -> Callable:
    """Return what `keras.Model.make_test_function` does under a distribution."""

    def make(self, force=False):
        if self.test_function is None or force:
            self.test_function = _on_iterator(self, Step(self, self.test_step, distribution))

    return make


def make_predict_function(distribution) -> Callable:
    """Return what `keras.Model.make_predict_function` does under a distribution."""

    def make(self, force=False):
        if self.predict_function is None or force:
            step = Step(self, self.predict_step, distribution)
            devices = distribution.axis_size(distribution.batch_dim_name)

            def predict_any(batch):
                arrays = keras.tree.map_structure(_array, batch)
                arrays, samples = filled_up(arrays, devices)
                return cut(step(arrays), samples)

            def predict(batches):
                outputs = [predict_any(batch) for batch in batches]
                return keras.tree.map_structure(lambda *parts: tf.concat(parts, 0), *outputs)

            self.predict_function = predict

    return make


def _on_iterator(model, step: Callable) -> Callable:
    """Return a function of an iterator over batches, which is what `fit` calls."""

    def function(iterator):
        outputs = step(next(iterator))  # StopIteration is the end of the epoch
        for batch in itertools.islice(iterator, model.steps_per_execution - 1):
            outputs = step(batch)
        return outputs

    return function


class Step:
    """A function of a batch, traced, checked, and run on all devices of a mesh.

    Args:
        model: whose step it is.
        function: of a batch.
        distribution: of the model's variables and of batches.

    Raises:
        ValueError: the model is to run eagerly, which would not be split, or has integer weights,
            whose products DTensor does not know.
    """

    def __init__(self, model: keras.Model, function: Callable, distribution):
        if model.run_eagerly:
            raise ValueError(
                "run_eagerly=True would run unsharded: compile the model without it, or leave "
                "model_parallel(...)"
            )
        for variable in model.weights:
            if variable.dtype in ("int8", "uint8"):
                raise ValueError(
                    f"{variable.path} is quantized, which TensorFlow's DTensor cannot split: "
                    "quantize the model outside of model_parallel(...)"
                )
        self.distribution = distribution
        self.mesh = distribution.device_mesh.backend_mesh
        # Shapes are known to each trace: DTensor cannot split what it does not know.
        self.traced = tf.function(function, autograph=False)
        self.checked = set()

    def __call__(self, batch):
        """Run on a batch of arrays or plain tensors; return plain tensors."""
        if keras.distribution.distribution() is not self.distribution:
            raise ValueError("the model is split over devices: run it inside of its model_parallel")
        if os.environ.get(COMBINE_ALL_REDUCES) != "0":
            raise ValueError(f"{COMBINE_ALL_REDUCES} must stay 0: gradients would be wrong")
        if tf.config.functions_run_eagerly():
            raise ValueError(
                "tf.config.run_functions_eagerly(True) would run unsharded: switch it off"
            )
        batch = keras.tree.map_structure(lambda leaf: self._split(_array(leaf)), batch)
        signature = str(keras.tree.map_structure(_signature, batch))
        with running(self.mesh):
            if signature not in self.checked:
                _check_variables(self.traced.get_concrete_function(batch))
                self.checked.add(signature)
            outputs = self.traced(batch)
        return keras.tree.map_structure(_plain, outputs)

    def _split(self, array):
        if array is None:
            return None
        layout = self.distribution.get_data_layout(tuple(array.shape))
        return split(array, layout.backend_layout)


def _array(leaf) -> np.ndarray | None:
    """Return what a batch has as an array; Keras's way to say that there are no labels is one."""
    is_none = leaf is None or isinstance(leaf, tf.experimental.Optional)
    return None if is_none else np.asarray(leaf)


def _signature(tensor):
    return None if tensor is None else (tensor.shape, tensor.dtype)


def _plain(output):
    if not tf.is_tensor(output):
        return output
    array = whole(output)
    with tf.device("CPU:0"):
        return tf.constant(array)


def _check_variables(function) -> None:
    """Refuse a traced step that uses a plain variable: it would be updated once for each device.

    Raises:
        ValueError: as said.
    """
    names = {id(variable.handle): variable.name for variable in function.graph.variables}
    for captured in function.captured_inputs:
        if captured.dtype == tf.resource and not dtensor.is_dtensor(captured):
            name = names.get(id(captured), "a variable")
            raise ValueError(
                f"{name} was made outside of this model_parallel(...), but is used in a step of "
                "the model: make the model, its optimizer and its metrics inside"
            )
