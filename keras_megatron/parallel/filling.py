"""Answers for any number of rows: rows are repeated until the devices have as many each."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping

import keras
import numpy as np

from keras_megatron.parallel.batches import cut
from keras_megatron.patching import patched
from keras_megatron.tasks.causal_lm import MegatronBertCausalLM
from keras_megatron.tasks.samples import as_columns


@contextlib.contextmanager
def filled_batches(distribution) -> Iterator[None]:
    """Have `predict_on_batch` take numbers of rows that the devices do not divide.

    Training and evaluation refuse them: a row that is repeated would count twice.
    """
    multiple = distribution.axis_size(distribution.batch_dim_name)
    filled = _filled(keras.Model.predict_on_batch, multiple)
    with patched(keras.Model, predict_on_batch=filled):
        yield


@contextlib.contextmanager
def filled_prompts(distribution) -> Iterator[None]:
    """Have `generate` take any number of prompts."""
    multiple = distribution.axis_size(distribution.batch_dim_name)
    generate = _generating(MegatronBertCausalLM.generate, multiple)
    with patched(MegatronBertCausalLM, generate=generate):
        yield


def _generating(generate: Callable, multiple: int) -> Callable:
    @functools.wraps(generate)
    def filled(self, inputs, *args, **kwargs):
        if isinstance(inputs, str):
            return filled(self, [inputs], *args, **kwargs)[0]
        rows = _rows(inputs)
        missing = -rows % multiple
        if not missing or (isinstance(inputs, Mapping) and np.ndim(inputs["token_ids"]) < 2):
            return generate(self, inputs, *args, **kwargs)
        outputs = generate(self, _with_last_repeated(inputs, missing), *args, **kwargs)
        if isinstance(outputs, Mapping):
            return {name: output[:rows] for name, output in outputs.items()}
        return outputs[:rows]

    return filled


def _filled(method: Callable, multiple: int) -> Callable:
    @functools.wraps(method)
    def filled(self, x=None, *args, **kwargs):
        rows = _rows(x)
        missing = -rows % multiple
        if not missing:
            return method(self, x, *args, **kwargs)
        outputs = method(self, _with_last_repeated(x, missing), *args, **kwargs)
        return cut(outputs, rows)

    return filled


def _rows(x) -> int:
    """Return the number of rows of columns; 0 for what is none, such as a dataset."""
    columns = x.values() if isinstance(x, Mapping) else as_columns(x)
    lengths = {len(c) if isinstance(c, list | np.ndarray) else 0 for c in columns}
    return lengths.pop() if len(lengths) == 1 else 0  # a task says what is wrong with others


def _with_last_repeated(x, times: int):
    if isinstance(x, Mapping):
        return {name: _with_last_repeated(column, times) for name, column in x.items()}
    if isinstance(x, tuple):
        return tuple(_with_last_repeated(column, times) for column in x)
    if isinstance(x, list):
        return x + x[-1:] * times
    return np.concatenate([x, np.repeat(x[-1:], times, axis=0)])
