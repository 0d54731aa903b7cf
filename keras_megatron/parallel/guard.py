"""An error for what would run without being sharded, in silence."""

import contextlib
import functools
from collections.abc import Iterator

import keras

from keras_megatron.patching import patched

_METHODS = ("fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "predict_on_batch")


@contextlib.contextmanager
def refuse_unsharded(distribution) -> Iterator[None]:
    """Have Keras's training methods refuse a model that was built outside, while this is active."""
    methods = {name: _checked(getattr(keras.Model, name), distribution) for name in _METHODS}
    with patched(keras.Model, **methods):
        yield


def _checked(method, distribution):
    @functools.wraps(method)
    def checked(self, *args, **kwargs):
        check_sharded(self, distribution)
        return method(self, *args, **kwargs)

    return checked


def check_sharded(model: keras.Model, distribution) -> None:
    """Refuse a model whose variables are not laid out as the distribution says.

    Raises:
        ValueError: a variable was made outside, or none is split although the mesh has an axis for
            it.
    """
    mesh, split = distribution.device_mesh, False
    for variable in model.variables:
        layout = getattr(variable, "_layout", None)
        if layout is None or layout.device_mesh is not mesh:
            raise ValueError(
                f"{variable.path} was made outside of this model_parallel(...), so the model would "
                "run unsharded: build or load it inside"
            )
        split = split or any(axis and distribution.axis_size(axis) > 1 for axis in layout.axes)
    others = (name for name in mesh.axis_names if name != distribution.batch_dim_name)
    if model.variables and not split and any(distribution.axis_size(name) > 1 for name in others):
        raise ValueError(
            f"no variable of {model.name} is split by the layout map, so each device would hold "
            "all of it: the rules fit the models of this package"
        )
