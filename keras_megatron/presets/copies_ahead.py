"""Copies of the arrays of a weights file, which a thread makes before they are asked for."""

import contextlib
import os
from concurrent.futures import Future, ThreadPoolExecutor

import h5py
import numpy as np

from keras_megatron.checkpoints.assignable import copy_to_pages

SMALLEST = 1 << 16  # bytes; smaller arrays are read by HDF5


class CopiesAhead:
    """Copies of the large arrays of an HDF5 file, in the order in which they lie there.

    A context manager: no copy is made after it.

    Args:
        path: The file, or None for copies that are made when they are asked for. If it is no HDF5
            file, nothing is copied ahead: who reads it says so.
    """

    def __init__(self, path: str | os.PathLike | None):
        self._executor = ThreadPoolExecutor(1, "copies-ahead")
        self._copies: dict[tuple[str, int], Future[np.ndarray]] = {}
        if path and os.path.isfile(path):
            arrays = sorted(_large_arrays(path).items())
            file = np.memmap(path, np.uint8, "r") if arrays else None
            for offset, size in arrays:
                view = file[offset : offset + size]
                self._copies[file.filename, offset] = self._executor.submit(copy_to_pages, view)

    def __enter__(self) -> "CopiesAhead":
        return self

    def __exit__(self, *exception) -> None:
        self._executor.shutdown(cancel_futures=True)
        self._copies.clear()

    def take(self, view: np.memmap) -> np.ndarray | None:
        """Return the copy of an array of the file, which is not kept here, if there is one."""
        future = self._copies.pop((view.filename, view.offset), None)
        if future is None or future.cancel():
            return None  # who asks is faster
        return future.result().view(view.dtype).reshape(view.shape)


def _large_arrays(path: str | os.PathLike) -> dict[int, int]:
    """Return the offsets and sizes of the arrays that lie in one piece, in bytes."""
    found = {}

    def see(name: bytes, info: h5py.h5o.ObjInfo) -> None:
        if info.type == h5py.h5o.TYPE_DATASET:
            dataset = h5py.h5d.open(file.id, name)
            offset, size = dataset.get_offset(), dataset.get_storage_size()
            if offset is not None and size >= SMALLEST:
                found[offset] = size

    no_file = contextlib.suppress(OSError, RuntimeError, ValueError, KeyError)
    with no_file, h5py.File(path) as file:
        h5py.h5o.visit(file.id, see, info=True)
    return found
