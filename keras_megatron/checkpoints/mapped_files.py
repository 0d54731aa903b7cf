"""Files mapped into memory: arrays are views of the mapping, read when they are asked for."""

import dataclasses
import math
import mmap
import os
import stat
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np

LONGEST_LINE = 8192
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array whose shape is known and whose numbers are read on demand.

    Attributes:
        shape: Its shape.
        dtype: Its numpy dtype.
        read: Returns the array; often a read-only view of a mapped file, so copy what you keep.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def same_numbers(first: LazyArray, second: LazyArray) -> bool:
    """Say whether two arrays are equal."""
    return first.shape == second.shape and np.array_equal(first.read(), second.read())


def joined(parts: Sequence[LazyArray], axis: int) -> LazyArray:
    """Return arrays of one dtype laid end to end along an axis, read one after another.

    Args:
        parts: The arrays, at least one; they have the same shape.
        axis: The axis.
    """
    if len(parts) == 1:
        return parts[0]
    shape = list(parts[0].shape)
    shape[axis] *= len(parts)

    def read() -> np.ndarray:
        whole = np.empty(shape, parts[0].dtype)
        for part, place in zip(parts, np.split(whole, len(parts), axis), strict=True):
            place[...] = part.read()
        return whole

    return LazyArray(tuple(shape), parts[0].dtype, read)


class MappedFile:
    """A window on a file mapped read-only, with the part of a file's methods that readers use."""

    def __init__(self, buffer: memoryview):
        self._buffer = buffer
        self._position = 0

    @classmethod
    def open(cls, path: str | os.PathLike) -> "MappedFile":
        """Map a whole file.

        Raises:
            ValueError: the file is empty, or no regular file: opening a pipe would wait for ever.
            OSError: it cannot be read.
        """
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is no regular file")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ValueError("the file is empty")
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return cls(memoryview(mapping))

    def __len__(self) -> int:
        return len(self._buffer)

    def window(self, start: int, size: int) -> "MappedFile":
        """Return the window of `size` bytes from `start`.

        Raises:
            ValueError: it does not lie within this one.
        """
        if start < 0 or size < 0 or start + size > len(self):
            raise ValueError(
                f"the file is truncated: bytes {start} to {start + size} of {len(self)} are needed"
            )
        return MappedFile(self._buffer[start : start + size])

    def array(self, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        """Return the first bytes as a read-only array, without a copy."""
        count = math.prod(shape)
        data = self.window(0, count * dtype.itemsize)._buffer
        # Bytes first: numpy makes no view of another dtype from the buffer of an empty array.
        return np.frombuffer(data, np.uint8).view(dtype).reshape(shape)

    # === What zipfile and pickletools ask of a file ===

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes, all that is left by default."""
        end = len(self) if size < 0 else min(len(self), self._position + size)
        data = bytes(self._buffer[self._position : end])
        self._position += len(data)
        return data

    def readline(self) -> bytes:
        """Read to the end of the line; a line longer than any real one comes without its end."""
        data = bytes(self._buffer[self._position : self._position + LONGEST_LINE])
        line = data[: data.find(b"\n") + 1] or data
        self._position += len(line)
        return line

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position, as `io.IOBase.seek`."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self)}[whence]
        if start + offset < 0:
            raise ValueError(f"cannot seek to {start + offset}")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seekable(self) -> bool:
        """Return True."""
        return True
