"""Writes files that `torch.load` reads, without torch.

Format: the zip archive of torch 1.6 and later, `torch/serialization.py`, function `_save`: a pickle
with the structure, and the numbers of each tensor in a member of its own.
"""

import argparse
import math
import os
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from keras_megatron.checkpoints.mapped_files import BFLOAT16, LazyArray

_STORAGES = {
    np.dtype("f8"): "DoubleStorage",
    np.dtype("f4"): "FloatStorage",
    np.dtype("f2"): "HalfStorage",
    BFLOAT16: "BFloat16Storage",
}
_ALIGNMENT = 64  # of the numbers in the file, as torch aligns them
_PADDING = b"FB"  # what torch calls the entry that aligns them
_INT32 = 2**31
_LARGEST_WITHOUT_ZIP64 = 2**31 - 1


def save_torch_file(path: str | os.PathLike, content: Mapping) -> None:
    """Write an object, reading each tensor only when it is its turn.

    Args:
        path: The file to write.
        content: Dictionaries, lists, tuples, strings, numbers, booleans, None,
            `argparse.Namespace` and tensors as `LazyArray`, in any nesting.

    Raises:
        TypeError: there is something else in it.
        OSError: the file cannot be written.
    """
    name = os.path.basename(path).partition(".")[0]
    pickler = _Pickler()
    pickler.put(content)
    with open(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"{name}/data.pkl"), bytes(pickler.written + b"."))
        archive.writestr(zipfile.ZipInfo(f"{name}/byteorder"), "little")
        for key, tensor in enumerate(pickler.tensors):
            size = math.prod(tensor.shape) * tensor.dtype.itemsize
            large = size > _LARGEST_WITHOUT_ZIP64
            member = _aligned(f"{name}/data/{key}", file.tell(), large)
            with archive.open(member, "w", force_zip64=large) as numbers:
                array = np.ascontiguousarray(tensor.read(), tensor.dtype)
                numbers.write(array.reshape(-1).view(np.uint8).data)
        archive.writestr(zipfile.ZipInfo(f"{name}/version"), "3\n")


def _aligned(name: str, start: int, zip64: bool) -> zipfile.ZipInfo:
    """Return a member whose header, which begins at `start`, ends at a multiple of 64 bytes."""
    member = zipfile.ZipInfo(name)
    header = start + 30 + len(name) + 4 + (20 if zip64 else 0)
    missing = -header % _ALIGNMENT
    member.extra = _PADDING + struct.pack("<H", missing) + b"Z" * missing
    return member


class _Pickler:
    """Writes the operations of protocol 2; Python's own would want torch for its classes' names."""

    def __init__(self):
        self.written = bytearray(b"\x80\x02")
        self.tensors: list[LazyArray] = []

    def put(self, value) -> None:
        """Write what makes a value."""
        if value is None or isinstance(value, bool):
            self.written += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        elif isinstance(value, int):
            self._put_integer(value)
        elif isinstance(value, float):
            self.written += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            encoded = value.encode()
            self.written += b"X" + struct.pack("<I", len(encoded)) + encoded
        elif isinstance(value, dict):
            self._put_all(b"}(", [part for item in value.items() for part in item], b"u")
        elif isinstance(value, list):
            self._put_all(b"](", value, b"e")
        elif isinstance(value, tuple):
            self._put_all(b"(", value, b"t")
        elif isinstance(value, argparse.Namespace):
            self._put_name("argparse", "Namespace")
            self.written += b")\x81"
            self.put(vars(value))
            self.written += b"b"
        elif isinstance(value, LazyArray):
            self._put_tensor(value)
        else:
            raise TypeError(f"a checkpoint holds no {type(value).__name__}")

    def _put_integer(self, value: int) -> None:
        if -_INT32 <= value < _INT32:
            self.written += b"J" + struct.pack("<i", value)
        else:
            encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.written += b"\x8a" + bytes([len(encoded)]) + encoded

    def _put_all(self, before: bytes, values, after: bytes) -> None:
        self.written += before
        for value in values:
            self.put(value)
        self.written += after

    def _put_name(self, module: str, name: str) -> None:
        self.written += f"c{module}\n{name}\n".encode()

    def _put_tensor(self, tensor: LazyArray) -> None:
        """Write a call of `_rebuild_tensor_v2`: storage, offset, shape, strides and two more."""
        key, size = str(len(self.tensors)), math.prod(tensor.shape)
        self.tensors.append(tensor)
        self._put_name("torch._utils", "_rebuild_tensor_v2")
        self.written += b"(("
        self.put("storage")
        self._put_name("torch", _STORAGES[tensor.dtype])
        for value in (key, "cpu", size):
            self.put(value)
        self.written += b"tQ"
        self.put(0)
        self.put(tensor.shape)
        self.put(tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))))
        self.put(False)  # it wants no gradient, and has no hooks
        self._put_name("collections", "OrderedDict")
        self.written += b")RtR"
