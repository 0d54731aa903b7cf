"""Operations that would put split tensors together, in forms that do not.

A layout is not known while a step is traced. But what a layer returns is laid out by
`distribute_tensor`, which leaves an operation in the graph that says so.
"""

import functools
from collections.abc import Callable

import tensorflow as tf
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.backend.tensorflow.random import _cast_seed
from keras.src.random.seed_generator import draw_seed
from tensorflow.experimental import dtensor

_ELEMENTWISE = ("Cast", "Identity", "IdentityN")


def distribute_tensor(tensor, layout):
    """Lay out a tensor of a traced step; see `keras.distribution.distribute_tensor`."""
    if not _is_traced():
        return tensor
    layout = layout.backend_layout
    if layout.rank != 3 or layout.sharding_specs[1] == dtensor.UNSHARDED:
        return dtensor.relayout(tensor, layout)
    batch, axis, width = layout.sharding_specs
    if tensor.shape[1] % layout.num_shards(1):
        raise ValueError(
            f"a sequence of {tensor.shape[1]} tokens cannot be split over the "
            f"{layout.num_shards(1)} devices of axis {axis!r}: give another sequence_length, or "
            "leave sequence_parallel out"
        )
    # The block before has whole sequences, backward too.
    whole = dtensor.Layout([batch, dtensor.UNSHARDED, width], layout.mesh)
    return with_layout(tensor, layout, whole)


def with_layout(tensor, layout: dtensor.Layout, gradient_layout: dtensor.Layout):
    """Lay out a tensor, and its gradient; both can be told from the graph."""

    @tf.custom_gradient
    def lay_out(tensor):
        return (
            dtensor.relayout(tensor, layout),
            lambda gradient: dtensor.relayout(gradient, gradient_layout),
        )

    return lay_out(tensor)


def take(original: Callable) -> Callable:
    """Return Keras's function, with a way of its own for rows of a table that is split by rows.

    Each device looks up what it has, and the sum over devices is the result, as in Megatron-LM
    (arXiv 1909.08053, section 3). DTensor would put the table together on each device.
    """

    @functools.wraps(original)
    def rows(x, indices, axis=None):
        table = tf.convert_to_tensor(x)
        layout = _layout(table)
        if axis != 0 or layout is None or layout.num_shards(0) < 2:
            return original(x, indices, axis=axis)
        return _look_up(table, tf.convert_to_tensor(indices), layout)

    return rows


def _look_up(table, indices, layout: dtensor.Layout):
    size, devices = table.shape[0], layout.num_shards(0)
    rows, width = size // devices, table.shape[1:]

    def by_device(tensor):
        axes = [layout.sharding_specs[0]] + [dtensor.UNSHARDED] * (tensor.shape.rank - 1)
        return dtensor.relayout(tensor, dtensor.Layout(axes, layout.mesh))

    @tf.custom_gradient
    def look_up(table):
        parts = by_device(tf.reshape(table, [devices, rows, *width]))
        first = tf.range(0, size, rows, indices.dtype)
        first = by_device(tf.reshape(first, [devices] + [1] * indices.shape.rank))
        local = tf.expand_dims(indices, 0) - first
        is_here = tf.logical_and(local >= 0, local < rows)
        found = tf.gather(parts, tf.where(is_here, local, tf.zeros_like(local)), batch_dims=1)
        is_here = tf.reshape(is_here, [*is_here.shape, *[1] * width.rank])
        found = tf.where(is_here, found, tf.zeros_like(found))

        def gradient(upstream):
            values = tf.reshape(upstream, [-1, *width])
            sums = tf.math.unsorted_segment_sum(values, tf.reshape(indices, [-1]), size)
            return dtensor.relayout(sums, layout)

        return tf.reduce_sum(found, 0), gradient

    return look_up(table)


def argmax(original: Callable) -> Callable:
    """Return Keras's function, with a way of its own along an axis that is split."""

    @functools.wraps(original)
    def place(x, axis=None, keepdims=False):
        layout = _layout(x)
        if axis not in (-1, len(x.shape) - 1) or not _is_split(layout):
            return original(x, axis=axis, keepdims=keepdims)
        is_highest = x == tf.reduce_max(x, -1, keepdims=True)
        places = _places(x, layout)
        # The first, if there are several.
        places = tf.where(is_highest, places, tf.fill(places.shape, x.shape[-1]))
        return tf.reduce_min(places, -1, keepdims=keepdims)

    return place


def flip(original: Callable) -> Callable:
    """Return Keras's function, with a way of its own in a step: DTensor cannot reverse."""

    @functools.wraps(original)
    def reverse(x, axis=None):
        if not _is_traced():
            return original(x, axis=axis)
        for one in range(len(x.shape)) if axis is None else tf.nest.flatten(axis):
            x = tf.gather(x, tf.range(x.shape[one] - 1, -1, -1), axis=one)
        return x

    return reverse


def dropout(original: Callable, mesh: dtensor.Mesh) -> Callable:
    """Return Keras's function, which drops the same elements as it would on one device.

    DTensor derives a seed for each device from how a random tensor is split. Where one graph has
    some that are split and some that are not, it mixes the seeds up: each device then drops other
    elements of what all should have alike, and the replicas of the weights drift apart in silence.
    So all devices draw all of the numbers, and those of a split tensor use their part of them.
    """

    @functools.wraps(original)
    def drop(inputs, rate, noise_shape=None, seed=None):
        if not _is_traced() or noise_shape is not None or not 0 < rate < 1:
            return original(inputs, rate, noise_shape, seed)
        # As `tf.nn.experimental.stateless_dropout` has it.
        seed = _cast_seed(draw_seed(seed))
        numbers = tf.random.stateless_uniform(inputs.shape, seed, dtype=inputs.dtype)
        alike = dtensor.Layout.replicated(mesh, inputs.shape.rank)
        kept = dtensor.relayout(dtensor.relayout(numbers, alike) >= rate, alike)
        return tf.where(kept, inputs * (1 / (1 - rate)), tf.zeros_like(inputs))

    return drop


def _is_traced() -> bool:
    """Say whether a step is being traced, and not only the shapes of a model."""
    return not (tf.executing_eagerly() or in_symbolic_scope())


def global_norm(original: Callable) -> Callable:
    """Return Keras's function, which would sum up over the devices once for each gradient."""

    @functools.wraps(original)
    def norm(gradients):
        whole, by_axis = [], {}
        for gradient in gradients:
            if gradient is None:
                continue
            layout, square = _layout(gradient), tf.square(gradient)
            split = [] if layout is None else _split_axes(layout)
            if layout is None or len(split) != 1:
                whole.append(tf.reduce_sum(square))
            else:
                by_axis.setdefault(split[0], []).append(_sums_by_device(square, layout, split[0]))
        sums = [tf.reduce_sum(tf.add_n(parts)) for parts in by_axis.values()]
        return tf.sqrt(tf.add_n([*whole, *sums]))

    return norm


def _sums_by_device(tensor, layout: dtensor.Layout, axis: str) -> tf.Tensor:
    """Return what each device sums up to: (devices,), split over them."""
    place, devices = layout.sharding_specs.index(axis), layout.mesh.dim_size(axis)
    shape = tensor.shape.as_list()
    shape[place : place + 1] = [devices, shape[place] // devices]
    others = [index for index in range(len(shape)) if index != place]
    return tf.reduce_sum(tf.reshape(tensor, shape), others)


def _layout(tensor) -> dtensor.Layout | None:
    """Return the layout that an output of a layer, a variable or its gradient was given."""
    if tf.executing_eagerly() or not tf.is_tensor(tensor):
        return None
    while tensor.op.type in _ELEMENTWISE:
        tensor = tensor.op.inputs[tensor.value_index]
    if tensor.op.type != "Relayout":
        return None
    return dtensor.Layout.from_string(tensor.op.get_attr("layout").decode())


def _split_axes(layout: dtensor.Layout) -> list[str]:
    """Return the axes of the mesh that something is split over."""
    return [axis for axis in layout.sharding_specs if axis != dtensor.UNSHARDED]


def _is_split(layout: dtensor.Layout | None) -> bool:
    return layout is not None and layout.num_shards(layout.rank - 1) > 1


def _places(tensor, layout: dtensor.Layout) -> tf.Tensor:
    """Return 0, 1, 2, ... along the last axis, split as a tensor's is: (1, ..., size)."""
    axes = [dtensor.UNSHARDED] * (layout.rank - 1) + [layout.sharding_specs[-1]]
    places = tf.reshape(tf.range(tensor.shape[-1]), [1] * (layout.rank - 1) + [-1])
    return dtensor.relayout(places, dtensor.Layout(axes, layout.mesh))
