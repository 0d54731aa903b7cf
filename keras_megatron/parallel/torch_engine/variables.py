"""Keras variables whose value is a DTensor, of which a process holds its share."""

import contextlib
from collections.abc import Iterator

import keras
import keras.src.backend
import keras.src.backend.torch as keras_torch
import numpy as np
import torch
from keras.src.backend.torch import core
from torch.distributed.tensor import DTensor

from keras_megatron.parallel.saving import is_discarding
from keras_megatron.parallel.torch_engine.devices import (
    Layout,
    backend_layout,
    distribute_tensor,
    from_share,
    own_share,
)
from keras_megatron.patching import patched


@contextlib.contextmanager
def sharded_variables(distribution) -> Iterator[None]:
    """Lay out the weights of layers, and the optimizer's slots, as a distribution says.

    Metrics, seeds, learning rates and counters have a layout, by which a model that was made here
    is known, but stay plain tensors, the same in each process.
    """
    initialize, add_weight = core.Variable._initialize, keras.layers.Layer.add_weight
    of_layer = False

    def add_weight_here(self, *args, **kwargs):
        nonlocal of_layer
        outer, of_layer = of_layer, True
        try:
            return add_weight(self, *args, **kwargs)
        finally:
            of_layer = outer

    def initialize_here(self, value):
        initialize(self, value)
        self._shape = tuple(self._value.shape)
        is_slot = self._layout is not None
        self._layout = distribution.get_variable_layout(self)
        if of_layer or is_slot:
            self._value = _parameter(self._value, backend_layout(self._layout))

    with (
        patched(core.Variable, _initialize=initialize_here, _direct_assign=_assign),
        patched(keras.layers.Layer, add_weight=add_weight_here),
        patched(core, convert_to_numpy=convert_to_numpy),
        patched(keras_torch, convert_to_numpy=convert_to_numpy),
        patched(keras.src.backend, convert_to_numpy=convert_to_numpy),
    ):
        yield


def _parameter(value: torch.Tensor, layout: Layout) -> torch.nn.Parameter:
    """Return a parameter of this process's share, which does not keep the rest alive."""
    trainable = value.requires_grad
    if isinstance(value, DTensor):
        share = value.detach().redistribute(layout.mesh, layout.placements).to_local()
    else:
        share = own_share(value.detach(), layout)
    # A copy of its own: a view would hold all of the tensor.
    share = share.clone(memory_format=torch.contiguous_format)
    parameter = torch.nn.Parameter(from_share(share, layout), requires_grad=trainable)
    if parameter.is_floating_point():
        parameter.requires_grad_(True)  # a hook is refused otherwise; it may become trainable later
        parameter.register_post_accumulate_grad_hook(_lay_out_gradient)
        parameter.requires_grad_(trainable)
    return parameter


def _lay_out_gradient(parameter: torch.nn.Parameter) -> None:
    """Sum a gradient over the replicas, once, and keep this process's share of it."""
    if isinstance(parameter.grad, DTensor) and parameter.grad.placements != parameter.placements:
        parameter.grad = parameter.grad.redistribute(placements=parameter.placements)


def _assign(self, value) -> None:
    """Set a variable to all of a new value, or to a DTensor; Variable._direct_assign."""
    with torch.no_grad():
        if not isinstance(self._value, DTensor):
            self.value.copy_(whole(value))
            return
        layout = Layout(self._value.device_mesh, self._value.placements)
        if isinstance(value, DTensor):
            self._value.copy_(distribute_tensor(value, layout))
        else:
            self._value.to_local().copy_(own_share(value, layout))


def whole(value):
    """Return all of a tensor: every process must call this for a DTensor, at the same time."""
    return value.detach().full_tensor() if isinstance(value, DTensor) else value


_convert_to_numpy = core.convert_to_numpy


def convert_to_numpy(x) -> np.ndarray:
    """Return a tensor, or a list of them, as an array; all of what is a DTensor."""
    if isinstance(x, list | tuple):
        return np.array([convert_to_numpy(item) for item in x])
    value = x.value if isinstance(x, core.Variable) else x
    if not isinstance(value, DTensor):
        return _convert_to_numpy(x)
    value = whole(value)
    return _convert_to_numpy(value.new_empty(0) if is_discarding() else value)
