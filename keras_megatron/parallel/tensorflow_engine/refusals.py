"""Errors for what would run unsharded, or not at all, on TensorFlow."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import keras
import keras_hub
import tensorflow as tf

from keras_megatron.parallel.tensorflow_engine.variables import ShardedVariable
from keras_megatron.patching import patched


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Refuse eager calls of layers whose variables are split, and to generate."""
    with (
        patched(keras.layers.Layer, __call__=_only_traced(keras.layers.Layer.__call__)),
        patched(keras_hub.models.CausalLM, make_generate_function=_refuse_to_generate),
    ):
        yield


def _only_traced(call: Callable) -> Callable:
    @functools.wraps(call)
    def call_traced(self, *args, **kwargs):
        if tf.executing_eagerly() and _is_split(self) and not _is_symbolic((args, kwargs)):
            raise ValueError(
                f"{self.name} was called on its own, which would run unsharded: use fit, evaluate, "
                "predict or predict_on_batch of the model, or call it outside of "
                "model_parallel(...)"
            )
        return call(self, *args, **kwargs)

    return call_traced


def _is_split(layer: keras.Layer) -> bool:
    return any(isinstance(variable._value, ShardedVariable) for variable in layer.variables)


def _is_symbolic(arguments) -> bool:
    """Say whether a model is being made, of layers that are called on what stands for tensors."""
    return any(isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten(arguments))


def _refuse_to_generate(self):
    raise ValueError(
        "generate is not possible inside of model_parallel(...) on TensorFlow, whose DTensor "
        "cannot write to a part of the cache: save the model, and load it outside"
    )
