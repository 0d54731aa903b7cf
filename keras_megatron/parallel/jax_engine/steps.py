"""Batches that each process is given all of, and predictions that each gets all of."""

import contextlib
import functools
from collections.abc import Iterator

import jax
import keras
import numpy as np
from keras.src.backend.jax import trainer
from keras.src.backend.jax.trainer import JAXEpochIterator, JAXTrainer

from keras_megatron.parallel.batches import filled_up
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


@contextlib.contextmanager
def any_batches(distribution) -> Iterator[None]:
    """Have `predict` take steps of numbers of samples that the devices do not divide.

    Training and evaluation refuse them: a sample that is repeated would count twice.
    """
    multiple = distribution.axis_size(distribution.batch_dim_name)
    predict = JAXTrainer.predict
    samples = None  # while predicting, how many there are in each step

    def distributed(self, distribution):
        for data in self.data_adapter.get_jax_iterator():
            if samples is not None:
                data, own = filled_up(data, multiple)
                samples.append(own)
            # With the layouts of the first batch, as Keras does it, a smaller last one is an error
            # of JAX's that says nothing of batches.
            yield trainer._distribute_data(data)

    @functools.wraps(predict)
    def predict_any(self, *args, **kwargs):
        nonlocal samples
        samples = []
        try:
            outputs = predict(self, *args, **kwargs)
            own = _own_rows(samples, multiple)
        finally:
            samples = None
        # Batches are taken ahead of `steps`: there may be fewer outputs.
        return keras.tree.map_structure(lambda rows: rows[own[own < len(rows)]], outputs)

    with (
        patched(JAXEpochIterator, _get_distributed_iterator=distributed),
        patched(JAXTrainer, predict=predict_any),
    ):
        yield


def _own_rows(samples: list[int], multiple: int) -> np.ndarray:
    """Return the places of samples among those of steps that were filled up."""
    starts = np.cumsum([0, *(own + -own % multiple for own in samples)])
    rows = [start + np.arange(own) for start, own in zip(starts, samples, strict=False)]
    return np.concatenate([np.arange(0), *rows])


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
