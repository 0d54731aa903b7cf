"""Keras's operations on DTensors, where DTensor's own are not what Megatron does, or gather."""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from keras.src.backend.torch import core, nn
from keras.src.backend.torch import numpy as keras_numpy
from keras.src.backend.torch import random as keras_random
from keras.src.backend.torch.core import convert_to_tensor
from keras.src.metrics import metrics_utils
from keras.src.optimizers import base_optimizer
from keras.src.random.seed_generator import draw_seed
from torch.distributed.tensor import DTensor, Replicate

from keras_megatron.parallel.torch_engine.devices import Layout, distribute_data_input, from_share
from keras_megatron.parallel.torch_engine.einsum import split_einsum
from keras_megatron.parallel.torch_engine.variables import whole
from keras_megatron.parallel.torch_engine.vocabulary import (
    split_argmax,
    split_axis,
    split_cross_entropy,
    split_lookup,
    summed,
)
from keras_megatron.patching import patched

_NEXT_STREAM = 0x9E3779B97F4A7C15  # far from the counters of seeds, which go up by one

_cross_entropy, _argmax = nn.sparse_categorical_crossentropy, keras_numpy.argmax
_take, _einsum, _slice_update = keras_numpy.take, keras_numpy.einsum, core.slice_update
_dropout, _min, _max = keras_random.dropout, keras_numpy.min, keras_numpy.max
_update_confusion_matrix = metrics_utils.update_confusion_matrix_variables


@contextlib.contextmanager
def sharded_operations() -> Iterator[None]:
    """Have Keras compute some operations on DTensors by what each process has of them."""
    with (
        patched(nn, sparse_categorical_crossentropy=sparse_categorical_crossentropy),
        patched(keras_numpy, argmax=argmax, take=take, einsum=einsum, min=lowest, max=highest),
        patched(metrics_utils, update_confusion_matrix_variables=update_confusion_matrix),
        patched(core, slice_update=slice_update),
        patched(keras_random, dropout=dropout),
        patched(base_optimizer, global_norm=global_norm),
    ):
        yield


# Each of these is Keras's function of the same name, or of the one that it says.


def sparse_categorical_crossentropy(target, output, from_logits=False, axis=-1):
    """Return the cross entropy of labels; classes may be split."""
    split = split_axis(output, axis)
    if split is None or not from_logits:
        return _cross_entropy(target, output, from_logits, axis)
    if len(target.shape) == len(output.shape) and target.shape[axis] == 1:
        target = torch.squeeze(target, dim=axis)
    return split_cross_entropy(target, output, axis % output.ndim, split)


def argmax(x, axis=None, keepdims=False):
    """Return where an axis is highest; it may be split."""
    split = None if axis is None else split_axis(x, axis)
    if split is None:
        return _argmax(x, axis, keepdims)
    return split_argmax(x, axis % x.ndim, split, keepdims)


def take(x, indices, axis=None):
    """Return rows of a table; it may be split by rows."""
    table = convert_to_tensor(x)
    split = split_axis(table, 0) if table.ndim == 2 and axis == 0 else None
    if split is not None:
        return split_lookup(table, indices, split)
    indices = convert_to_tensor(indices)
    if isinstance(table, DTensor) and not isinstance(indices, DTensor):
        # Backward, maybe in another thread, DTensor would not take it for what each process has.
        layout = Layout(table.device_mesh, (Replicate(),) * table.device_mesh.ndim)
        indices = from_share(indices, layout)
    return _take(table, indices, axis)


def einsum(subscripts, *operands, **kwargs):
    """Return a product, of what each process has if that is enough."""
    result = split_einsum(subscripts, *map(convert_to_tensor, operands))
    return _einsum(subscripts, *operands, **kwargs) if result is None else result


def lowest(x, axis=None, keepdims=False, initial=None):
    """Return the minimum, `keras.ops.min`, over all devices: it may decide what each does."""
    return _known(_min(x, axis, keepdims, initial))


def highest(x, axis=None, keepdims=False, initial=None):
    """Return the maximum, `keras.ops.max`, over all devices."""
    return _known(_max(x, axis, keepdims, initial))


def _known(tensor):
    return summed(tensor) if isinstance(tensor, DTensor) else tensor


def update_confusion_matrix(variables, y_true, y_pred, *args, sample_weight=None, **kwargs):
    """Count hits by threshold (area under a curve, precision, recall), of whole outputs."""
    y_true, y_pred, sample_weight = (
        part if part is None else whole(convert_to_tensor(part))
        for part in (y_true, y_pred, sample_weight)
    )
    return _update_confusion_matrix(
        variables, y_true, y_pred, *args, sample_weight=sample_weight, **kwargs
    )


def slice_update(inputs, start_indices, updates):
    """Replace a part of a tensor; what is split is replaced as a whole.

    That is so for keys and values, of heads or of rows of a batch.
    """
    if not isinstance(updates, DTensor):
        return _slice_update(inputs, start_indices, updates)
    inputs, updates = convert_to_tensor(inputs), summed(updates)
    layout = Layout(updates.device_mesh, updates.placements)
    if isinstance(inputs, DTensor):
        inputs = inputs.redistribute(*layout)
    else:
        inputs = distribute_data_input(inputs, layout)
    start = [whole(start) for start in start_indices]
    share = _slice_update(inputs.to_local(), start, updates.to_local())
    return from_share(share, layout, like=inputs)


def dropout(inputs, rate, noise_shape=None, seed=None):
    """Drop out: what is replicated alike everywhere, each share of what is split on its own.

    Megatron-LM's two random streams (arXiv 1909.08053, section 3), drawn from the one of Keras.
    """
    if not isinstance(inputs, DTensor) or noise_shape is not None or not 0 < rate < 1:
        return _dropout(inputs, rate, noise_shape, seed)
    inputs = summed(inputs)
    share = inputs.detach().to_local()
    stream = 0
    for axis, placement in enumerate(inputs.placements):
        stream *= inputs.device_mesh.size(axis)
        stream += inputs.device_mesh.get_local_rank(axis) if placement.is_shard() else 0
    first, second = draw_seed(seed)
    generator = torch.Generator(device=share.device)
    generator.manual_seed((int(first + second) + stream * _NEXT_STREAM) % 2**63)
    kept = torch.empty_like(share, dtype=torch.bool).bernoulli_(1 - rate, generator=generator)
    kept = from_share(kept, Layout(inputs.device_mesh, inputs.placements), like=inputs)
    return torch.where(kept, inputs / (1 - rate), torch.zeros_like(inputs))


def global_norm(gradients: list) -> torch.Tensor:
    """Return the norm of all gradients together: one all-reduce for those that are split."""
    sums = {}
    for gradient in gradients:
        if gradient is None:
            continue
        mesh, split = None, ()
        if isinstance(gradient, DTensor):
            mesh, split = gradient.device_mesh, tuple(p.is_shard() for p in gradient.placements)
            gradient = gradient.to_local()
        sums[mesh, split] = sums.get((mesh, split), 0) + gradient.square().sum()
    for mesh, split in sums:
        for axis, is_split in enumerate(split):
            if is_split:
                dist.all_reduce(sums[mesh, split], group=mesh.get_group(axis))
    return sum(sums.values()).sqrt()
