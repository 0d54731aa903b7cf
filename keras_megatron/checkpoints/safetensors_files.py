"""Reads and writes safetensors files one tensor at a time, for all backends alike.

Format: eight bytes with the length of a JSON header, the header (name -> dtype, shape, offsets),
the numbers. https://github.com/huggingface/safetensors#format
"""

import json
import math
import os
from collections.abc import Mapping

import numpy as np

from keras_megatron.checkpoints.mapped_files import BFLOAT16, LazyArray, MappedFile
from keras_megatron.checkpoints.one_line import LONGEST_NAME, one_line

_DTYPES = {
    "F64": np.dtype("f8"),
    "F32": np.dtype("f4"),
    "F16": np.dtype("f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("i8"),
    "I32": np.dtype("i4"),
    "I16": np.dtype("i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNMENT = 8
_LONGEST_HEADER = 1 << 24  # a hundred times that of a model of a hundred layers
_MOST_DIMENSIONS = 8
_LARGEST = 2**53


def load_safetensors(file: MappedFile) -> dict[str, LazyArray]:
    """Read the header.

    Returns:
        The tensors by name, views of the file.

    Raises:
        ValueError: the file is truncated or damaged, or a tensor has a dtype of no weights.
    """
    header_size = int.from_bytes(file.window(0, 8).read(), "little")
    if header_size > _LONGEST_HEADER:
        raise ValueError(f"it is no safetensors file: it claims a header of {header_size} bytes")
    try:
        header = json.loads(file.window(8, header_size).read().decode())  # UTF-8, not guessed
        data = file.window(8 + header_size, len(file) - 8 - header_size)
        header.pop("__metadata__", None)
        if (longest := max(map(len, header), default=0)) > LONGEST_NAME:
            raise ValueError(f"a tensor's name has {longest} characters")
        tensors = {name: _tensor(data, **entry) for name, entry in header.items()}
    except ValueError as error:
        message = f"the safetensors file is damaged: {one_line(error)}"
        raise ValueError(message) from error
    except (TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError("the header of the safetensors file is damaged") from error
    sizes = (math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
    if sum(sizes) > len(data):
        raise ValueError("the safetensors file is damaged: tensors have the same bytes")
    return tensors


def _tensor(data: MappedFile, dtype: str, shape: list, data_offsets: list) -> LazyArray:
    if dtype not in _DTYPES:
        raise ValueError(f"a tensor has dtype {str(dtype)[:20]!r}, which is not supported")
    if len(shape) > _MOST_DIMENSIONS or len(data_offsets) != 2:
        raise ValueError("a tensor has too many dimensions, or not two offsets")
    numbers = (*shape, *data_offsets)
    if not all(type(number) is int and 0 <= number < _LARGEST for number in numbers):
        raise ValueError("a tensor's shape and offsets must be integers that make sense")
    numpy_dtype = _DTYPES[dtype]
    start, end = data_offsets
    if end - start != math.prod(shape) * numpy_dtype.itemsize:
        raise ValueError("a tensor does not have its shape's size")
    window = data.window(start, end - start)
    shape = tuple(shape)
    return LazyArray(shape, numpy_dtype, lambda: window.array(numpy_dtype, shape))


def save_safetensors(path: str | os.PathLike, tensors: Mapping[str, LazyArray]) -> None:
    """Write tensors, reading each one only when it is its turn.

    Args:
        path: The file to write.
        tensors: What to write, in this order.

    Raises:
        OSError: the file cannot be written.
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for tensor in tensors.values():
            array = np.ascontiguousarray(tensor.read(), tensor.dtype)
            file.write(array.reshape(-1).view(np.uint8).data)
