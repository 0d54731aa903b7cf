"""Arrays as variables take them on each backend: copied once into memory of the variable's own."""

import keras
import numpy as np

from keras_megatron.checkpoints.mapped_files import BFLOAT16
from keras_megatron.pages import as_tensorflow, new_pages


def assignable(array: np.ndarray, pages: np.ndarray | None = None):
    """Return an array as something that `keras.Variable.assign` copies once, or takes as it is.

    Keras copies an array for PyTorch before it is copied into the variable. TensorFlow and JAX take
    an array as it is if it is aligned, JAX even a view of a file: they get pages of their own.

    Args:
        array: Any; it is not kept.
        pages: A copy of it made by `copy_to_pages`.
    """
    backend = keras.config.backend()
    if backend == "torch":
        import torch

        is_taken = array.dtype != BFLOAT16 and array.flags.writeable
        return torch.from_numpy(array) if is_taken else array
    if not array.nbytes:
        return array
    pages = copy_to_pages(array) if pages is None else pages
    return pages if backend == "jax" else as_tensorflow(pages)


def copy_to_pages(array: np.ndarray) -> np.ndarray:
    """Copy an array into pages of its own."""
    copy = new_pages(array.shape, array.dtype)
    copy[...] = array
    return copy


def keeps_pages() -> bool:
    """Say whether variables take pages as they are: not if they are on a GPU, or shared out."""
    if keras.distribution.distribution():
        return False
    if keras.config.backend() == "jax":
        import jax

        return jax.default_backend() == "cpu"
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return not tf.config.get_visible_devices("GPU")
    return False
