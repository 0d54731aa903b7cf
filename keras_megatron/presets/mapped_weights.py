"""Keras's reading of weights files, without what takes longer than the reading itself."""

import contextlib
import functools
import os
from collections.abc import Iterator
from contextvars import ContextVar

import h5py
import numpy as np
from keras.src.saving import saving_lib

from keras_megatron.checkpoints.assignable import assignable, keeps_pages
from keras_megatron.checkpoints.mapped_files import BFLOAT16
from keras_megatron.garbage import no_collections
from keras_megatron.patching import patched
from keras_megatron.presets.copies_ahead import SMALLEST, CopiesAhead

_is_active = ContextVar("mapped weights", default=False)


@contextlib.contextmanager
def mapped_weights(path: str | os.PathLike | None = None) -> Iterator[None]:
    """Have Keras map large arrays of weights files into memory while this is active.

    HDF5 reads an array into new memory, which is then copied into the variable's: getting that
    memory takes longer than the copy. Arrays that are not mapped are read as ever: those within a
    `.keras` archive, compressed ones, and those of another byte order.

    Args:
        path: a file that will be read, if one is known: for JAX and TensorFlow a thread copies its
            arrays while the model is built.
    """
    if _is_active.get():
        yield  # within another one
        return
    read = saving_lib.H5IOStore.__getitem__

    def __getitem__(store, key):
        view = None if store.archive else _view(store, key)
        return read(store, key) if view is None else assignable(view, copies.take(view))

    # Keras 3.15 stores what attributes a class has under another name than it looks for, and makes
    # a layer for each layer of a model to find out.
    attributes = functools.cache(saving_lib.get_attr_skipset)
    with (
        CopiesAhead(path if keeps_pages() else None) as copies,
        no_collections(),
        patched(saving_lib.H5IOStore, __getitem__=__getitem__),
        patched(saving_lib, get_attr_skipset=attributes),
    ):
        token = _is_active.set(True)
        try:
            yield
        finally:
            _is_active.reset(token)


def _view(store: saving_lib.H5IOStore, key: str) -> np.ndarray | None:
    """Return a view of a large array in its file; writes to it would stay in memory."""
    dataset: h5py.Dataset = saving_lib.safe_get_h5_dataset(store._h5_entry_group, key)
    offset = dataset.id.get_offset()  # None unless its numbers lie in one piece
    if offset is None or dataset.nbytes < SMALLEST or not dataset.dtype.isnative:
        return None
    dtype = BFLOAT16 if dataset.attrs.get("dtype") == "bfloat16" else dataset.dtype
    return np.memmap(dataset.file.filename, dtype, "c", offset, dataset.shape)
