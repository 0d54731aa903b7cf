"""One context manager for tensor and data parallelism on whichever backend is active."""

import contextlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np

from keras_megatron.parallel.distribution import MegatronParallel
from keras_megatron.parallel.engines import engine
from keras_megatron.parallel.guard import refuse_unsharded
from keras_megatron.parallel.rules import layout_map as megatron_layout_map

AXES = ("batch", "model")


@contextlib.contextmanager
def model_parallel(
    model: int | None = None,
    data: int = 1,
    sequence_parallel: bool = False,
    devices: Sequence[str] | None = None,
    layout_map: keras.distribution.LayoutMap | None = None,
) -> Iterator[MegatronParallel]:
    """Split models, and the batches they are given, over devices.

    Build or load the model, compile and train it inside. On PyTorch each device has a process of
    its own: start the script with `torchrun`.

    Args:
        model: devices that kernels are split over (tensor parallelism); by default all that `data`
            leaves.
        data: devices that a batch is split over.
        sequence_parallel: see `MegatronBertBackbone.get_layout_map`.
        devices: names of the devices, such as `"gpu:0"`; by default all, as
            `keras.distribution.list_devices` gives them.
        layout_map: the rules, with their mesh, in place of Megatron's on a mesh of these devices.

    Yields:
        The distribution, active inside.

    Raises:
        ValueError: there are other devices than the two numbers need, or, later, a size of the
            model or of a batch cannot be split.

    Example:
    ```python
    from keras_megatron import MegatronBertMaskedLM, parallel

    with parallel.model_parallel(model=1):
        masked_lm = MegatronBertMaskedLM.from_preset("megatron_bert_tiny_uncased")
        masked_lm.fit(["Call me Ishmael."], verbose=0)
    ```
    """
    backend_engine = engine()
    with backend_engine.installed():
        if layout_map is None:
            mesh = make_mesh(model, data, devices)
            layout_map = megatron_layout_map(mesh, sequence_parallel=sequence_parallel)
        distribution = MegatronParallel(
            layout_map, batch_dim_name=batch_axis(layout_map.device_mesh)
        )
        with (
            distribution.scope(),
            backend_engine.active(distribution),
            refuse_unsharded(distribution),
        ):
            yield distribution


def make_mesh(
    model: int | None, data: int, devices: Sequence[str] | None
) -> keras.distribution.DeviceMesh:
    """Return a mesh of (data, model) devices.

    Raises:
        ValueError: the numbers do not fit the devices.
    """
    devices = list(devices) if devices is not None else keras.distribution.list_devices()
    for name, number in (("model", model), ("data", data)):
        if number is not None and (not isinstance(number, int) or number < 1):
            raise ValueError(f"{name} must be a positive integer, not {number!r}")
    if model is None:
        model = max(1, len(devices) // data)
    if data * model != len(devices):
        raise ValueError(
            f"data={data} times model={model} is {data * model} devices, but there are "
            f"{len(devices)}: {engine().more_devices}"
        )
    return keras.distribution.DeviceMesh((data, model), AXES, np.array(devices))


def batch_axis(mesh: keras.distribution.DeviceMesh) -> str:
    """Return the name of the axis that batches are split over: `batch`, else the first."""
    return "batch" if "batch" in mesh.axis_names else mesh.axis_names[0]
