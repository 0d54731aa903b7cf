"""Batches that each process is given all of, and predictions that each gets all of."""

import contextlib
import functools
from collections.abc import Iterator

import jax
import keras
from keras.src.backend.jax import trainer
from keras.src.backend.jax.trainer import JAXTrainer

from keras_megatron.parallel.jax_engine.processes import have_same
from keras_megatron.parallel.same_data import other_batch
from keras_megatron.patching import patched

_distribute_data = trainer._distribute_data
_predict_step, _predict_on_batch = JAXTrainer.predict_step, JAXTrainer.predict_on_batch


@contextlib.contextmanager
def same_batches() -> Iterator[None]:
    """Have steps take the batch that every process was given, and predictions be whole."""
    with (
        patched(trainer, _distribute_data=distribute_data),
        patched(JAXTrainer, predict_step=predict_step, predict_on_batch=predict_on_batch),
    ):
        yield


# Each of these is Keras's function of the same name.


def distribute_data(data, layouts=None):
    """Split a batch.

    Raises:
        ValueError: the processes were given different ones.
    """
    if not have_same(keras.tree.flatten(data)):
        raise other_batch(jax.process_index())
    return _distribute_data(data, layouts)


@functools.wraps(_predict_step)
def predict_step(self, state, data):
    """Predict; a process can read no part of an output that it has not."""
    outputs, variables = _predict_step(self, state, data)
    distribution = keras.distribution.distribution()

    def whole(output):
        layout = keras.distribution.TensorLayout([None] * output.ndim, distribution.device_mesh)
        return keras.distribution.distribute_tensor(output, layout)

    return keras.tree.map_structure(whole, outputs), variables


@functools.wraps(_predict_on_batch)
def predict_on_batch(self, x):
    """Predict on a batch, which Keras would not split, nor anybody compare."""
    return _predict_on_batch(self, trainer._distribute_data(x))
