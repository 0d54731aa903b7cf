"""Keras's JAX trainer takes the variables' arrays while it runs: that no failure loses them."""

import contextlib
import threading
from collections.abc import Iterator

import keras

_one_at_a_time = threading.RLock()


def one_at_a_time() -> contextlib.AbstractContextManager:
    """Keep other threads from predicting: a model's arrays are given away then, and come back."""
    return _one_at_a_time if keras.config.backend() == "jax" else contextlib.nullcontext()


@contextlib.contextmanager
def kept_weights(model: keras.Model, arguments: dict | None = None) -> Iterator[None]:
    """Give a model its weights back if what runs on JAX fails before its first step is done.

    From then on Keras puts back what the last step made.

    Args:
        model: whose variables are kept.
        arguments: of `fit`, where the first step is waited for: `callbacks` is set, so that the
            weights of before take no memory beside the trained ones.
    """
    if keras.config.backend() != "jax":
        yield
        return
    variables = [*model.variables, *(model.optimizer.variables if model.optimizer else ())]
    kept = [(variable, variable._value) for variable in variables]
    callbacks = (arguments or {}).get("callbacks")
    if arguments is not None and not isinstance(callbacks, keras.callbacks.CallbackList):
        given = callbacks if isinstance(callbacks, list | tuple) else [callbacks]
        own = [callback for callback in given if callback is not None]
        arguments["callbacks"] = [*own, _AfterFirstStep(kept.clear)]
    try:
        yield
    except BaseException:
        for variable, value in kept:
            if variable._value is None and value is not None and not value.is_deleted():
                variable._value = value
        raise


class _AfterFirstStep(keras.callbacks.Callback):
    async_safe = True  # so that no step waits for the one before

    def __init__(self, function):
        super().__init__()
        self._function = function

    def on_train_batch_end(self, batch, logs=None):
        self._function()
