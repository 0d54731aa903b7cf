"""Memory in pages of its own, which Python's allocator and numpy's have no part in."""

import mmap

import ml_dtypes  # noqa: F401  (tells NumPy the name bfloat16)
import numpy as np


def new_pages(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Return zeros in pages that take no memory until they are written to.

    numpy would ask for huge pages, which takes longer than a copy where memory is in pieces.
    """
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    # Not shared with processes that are forked, as it would be by default.
    return np.frombuffer(mmap.mmap(-1, size, access=mmap.ACCESS_COPY), dtype).reshape(shape)


def as_tensorflow(pages: np.ndarray):
    """Return pages as a tensor of TensorFlow; `tf.convert_to_tensor` would copy them."""
    import tensorflow as tf

    from_numpy = tf.experimental.dlpack.from_dlpack
    if pages.dtype.name == "bfloat16":  # which DLPack does not have in numpy
        return tf.bitcast(from_numpy(pages.view(np.uint16).__dlpack__()), tf.bfloat16)
    return from_numpy(pages.__dlpack__())
