"""Query, key and value: one weight in Megatron-LM's checkpoints, three everywhere else."""

import itertools
from collections.abc import Sequence

import numpy as np

from keras_megatron.checkpoints.mapped_files import LazyArray
from keras_megatron.checkpoints.shards import LAYER

PARTS = ("query", "key", "value")
FUSED = "query_key_value"


def _axis(version: float) -> int:
    """Return which axis of a fused weight's rows tells the three apart.

    Rows are [3, heads, head_dim] in version 0, [heads, head_dim, 3] in 1.0 and [heads, 3, head_dim]
    since 2.0 (Megatron-LM, `fix_query_key_value_ordering`), of a rank's own heads in each: ranks
    can only be joined once they are split, and only be fused once they are apart.
    """
    return {0: 0, 1: 2}.get(version, 1)


def split_query_key_value(
    tensors: dict[str, LazyArray], num_heads: int, head_dim: int, version: float
) -> None:
    """Replace each `query_key_value` of one tensor rank by three tensors.

    Args:
        tensors: By the names of 2020; they change.
        num_heads: Of this rank.
        head_dim: Width of a head.
        version: `checkpoint_version`.

    Raises:
        ValueError: one is missing, or has another shape.
    """
    width = num_heads * head_dim
    axis = _axis(version)
    rows = [num_heads, head_dim]
    rows.insert(axis, 3)
    layers = {match[0] for name in tensors if (match := LAYER.match(name))}
    for layer, kind in itertools.product(sorted(layers), ("weight", "bias")):
        name = f"{layer}attention.{FUSED}.{kind}"
        if name not in tensors:
            raise ValueError(f"the checkpoint lacks {name!r}")
        fused = tensors.pop(name)
        if fused.shape[:1] != (3 * width,):
            needed = (3 * width, *fused.shape[1:])
            raise ValueError(f"{name!r} has shape {fused.shape} but the model needs {needed}")
        for index, part in enumerate(PARTS):
            shape = (width, *fused.shape[1:])

            def read(fused=fused, index=index, shape=shape) -> np.ndarray:
                split = fused.read().reshape(*rows, *shape[1:])
                return split.take(index, axis).reshape(shape)

            tensors[f"{layer}attention.{part}.{kind}"] = LazyArray(shape, fused.dtype, read)


def fuse_query_key_value(parts: Sequence[LazyArray], num_heads: int, version: float) -> LazyArray:
    """Return the weight that `split_query_key_value` takes apart.

    Args:
        parts: Query, key and value of one tensor rank, weights or biases.
        num_heads: Of this rank.
        version: `checkpoint_version`.
    """
    rows, *rest = parts[0].shape

    def read() -> np.ndarray:
        apart = [part.read().reshape(num_heads, rows // num_heads, *rest) for part in parts]
        return np.stack(apart, _axis(version)).reshape(3 * rows, *rest)

    return LazyArray((3 * rows, *rest), parts[0].dtype, read)
