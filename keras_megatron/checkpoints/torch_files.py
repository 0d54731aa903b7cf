"""Reads files of `torch.save` without torch and without running anything that they contain.

Both serializations: the zip archive (torch 1.6 and later) and the older stream of pickles followed
by the storages. Format: `torch/serialization.py`, functions `_save` and `_legacy_save`.
"""

import math
from collections.abc import Callable

import numpy as np

from keras_megatron.checkpoints.mapped_files import BFLOAT16, LazyArray, MappedFile
from keras_megatron.checkpoints.pickled_values import KNOWN_VALUES
from keras_megatron.checkpoints.restricted_pickle import Global, load_pickle
from keras_megatron.checkpoints.zip_files import is_zip, open_zip, stored_member

STREAM_MAGIC = 0x1950A86A20F9469CFC6C
STREAM_PROTOCOL = 1001
MOST_DIMENSIONS = 8
LARGEST = 2**53
_MOST_VIEWS = 16  # tied weights, and the optimizer's references to them, are two to four

_STORAGES = {
    "Double": np.dtype("f8"),
    "Float": np.dtype("f4"),
    "Half": np.dtype("f2"),
    "BFloat16": BFLOAT16,
    "Long": np.dtype("i8"),
    "Int": np.dtype("i4"),
    "Short": np.dtype("i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("?"),
}
# What `torch.dtype`s are called; a few have two names.
DTYPES = {
    "float64": np.dtype("f8"),
    "double": np.dtype("f8"),
    "float32": np.dtype("f4"),
    "float": np.dtype("f4"),
    "float16": np.dtype("f2"),
    "half": np.dtype("f2"),
    "bfloat16": BFLOAT16,
    "int64": np.dtype("i8"),
    "long": np.dtype("i8"),
    "int32": np.dtype("i4"),
    "int": np.dtype("i4"),
    "int16": np.dtype("i2"),
    "short": np.dtype("i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}


class Storage:
    """The numbers that tensors view: `size` of them, in a window known once the file is read."""

    def __init__(self, dtype: np.dtype, size: int):
        self.dtype = dtype
        self.size = size
        self.viewed = 0
        self.window: MappedFile | None = None

    def view(self, size: int) -> None:
        """Count the numbers of a tensor, lest a small file claims to hold a huge model."""
        self.viewed += size
        if self.viewed > _MOST_VIEWS * self.size:
            raise ValueError(f"refused: tensors use a storage more than {_MOST_VIEWS} times over")

    def array(self) -> np.ndarray:
        """Return the storage as a one-dimensional view of the file."""
        return self.window.array(self.dtype, (self.size,))


def load_torch_file(file: MappedFile):
    """Read what `torch.save` wrote, with tensors as `LazyArray`.

    Args:
        file: The mapped file, or the window of a zip that holds it.

    Returns:
        The saved object. Values that stand for others are described in `pickled_values`.

    Raises:
        ValueError: the file is truncated, damaged, of another format, or its pickle names anything
            but tensors and plain values.
    """
    return _load_archive(file) if is_zip(file) else _load_stream(file)


# === Tensors ===


def _rebuild_tensor(storage, offset, shape, strides, *_) -> LazyArray:
    """Check that the view lies in its storage; `_` holds what only training needs."""
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor is a view of a {type(storage).__name__}")
    # Their types before they are counted, their number before each is looked at.
    if not all(isinstance(numbers, tuple | list) for numbers in (shape, strides)):
        raise ValueError("a tensor's shape and strides must be tuples")
    if len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"a tensor has {len(shape)} dimensions but {len(strides)} strides")
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and 0 <= number < LARGEST for number in numbers):
        raise ValueError("a tensor's shape, strides and offset must be integers that make sense")
    size = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if size > storage.size or (size and last >= storage.size):
        raise ValueError(f"a tensor of shape {shape} does not fit its {storage.size} numbers")
    storage.view(size)
    byte_strides = tuple(stride * storage.dtype.itemsize for stride in strides)

    def read() -> np.ndarray:
        base = storage.array()[offset:]
        return np.lib.stride_tricks.as_strided(base, shape, byte_strides, writeable=False)

    return LazyArray(tuple(shape), storage.dtype, read)


def _rebuild_parameter(tensor, *_) -> LazyArray:
    if not isinstance(tensor, LazyArray):
        raise ValueError("a parameter is not a tensor")
    return tensor


def _rebuild_with_attributes(function, kind, arguments, state) -> LazyArray:
    """Rebuild a tensor that had Python attributes; they are dropped."""
    if function.function not in (_rebuild_tensor, _rebuild_parameter):
        raise ValueError("refused: its pickle rebuilds a tensor by what is no function for that")
    return function.function(*arguments)


_FUNCTIONS: dict[str, Callable | None] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_with_attributes,
    "torch.Tensor": None,
    "torch.nn.parameter.Parameter": None,
    "torch.Size": tuple,
    "torch.device": lambda *name_and_index: name_and_index,
    **{f"torch.{name}Storage": None for name in _STORAGES},
    **{f"torch.{name}": None for name in DTYPES},
}
KNOWN = KNOWN_VALUES | {name: Global(name, function) for name, function in _FUNCTIONS.items()}


class _Storages:
    """The storages that a pickle refers to by persistent ids, keyed by their names in the file."""

    def __init__(self, file_size: int):
        self.file_size = file_size
        self.by_key: dict[str, Storage] = {}

    def find(self, identifier) -> Storage:
        kind, type_, key, _, size, *view = identifier
        if kind != "storage" or not isinstance(type_, Global) or not isinstance(key, str):
            raise ValueError("refused: its pickle refers to an object that is no tensor storage")
        dtype = _STORAGES.get(type_.name.removeprefix("torch.").removesuffix("Storage"))
        if dtype is None or any(view):
            raise ValueError(f"a storage of {type_.name} is not supported")
        if type(size) is not int:
            raise ValueError(f"the file is damaged: a storage's size is a {type(size).__name__}")
        if not 0 <= size * dtype.itemsize <= self.file_size:
            raise ValueError(f"the file is truncated: a storage claims {size} numbers")
        storage = self.by_key.setdefault(key, Storage(dtype, size))
        if (storage.dtype, storage.size) != (dtype, size):
            raise ValueError(f"storage {key[:40]!r} is described in two ways")
        return storage


# === The zip archive of torch 1.6 and later ===


def _load_archive(file: MappedFile):
    members = {member.filename: member for member in open_zip(file).infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError("the zip is neither a release of Megatron nor a file of torch.save")
    folder = pickles[0].removesuffix("data.pkl")
    order = members.get(f"{folder}byteorder")
    if order and stored_member(file, order).read() != b"little":
        raise ValueError("the file was saved on a big-endian machine, which is not supported")
    storages = _Storages(len(file))
    content = load_pickle(stored_member(file, members[pickles[0]]), KNOWN, storages.find)
    for key, storage in storages.by_key.items():
        member = members.get(f"{folder}data/{key}")
        if member is None or member.file_size < storage.size * storage.dtype.itemsize:
            raise ValueError(f"the file is damaged: storage {key[:40]!r} is missing or too short")
        storage.window = stored_member(file, member)
    if sum(len(storage.window) for storage in storages.by_key.values()) > len(file):
        raise ValueError("refused: the zip's members are the same bytes")
    return content


# === The stream of earlier versions ===


def _load_stream(file: MappedFile):
    try:
        magic = load_pickle(file, {})
    except ValueError:
        magic = None
    if magic != STREAM_MAGIC:
        raise ValueError("the file was not written by torch.save")
    if load_pickle(file, {}) != STREAM_PROTOCOL:
        raise ValueError("the file was written by a version of torch.save that is not supported")
    system = load_pickle(file, {})
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("the file was saved on a big-endian machine, which is not supported")
    storages = _Storages(len(file))
    content = load_pickle(file, KNOWN, storages.find)
    keys = load_pickle(file, {})
    strings = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not strings or sorted(keys) != sorted(storages.by_key):
        raise ValueError("the file is damaged: its storages are not those its tensors use")
    for key in keys:
        storage = storages.by_key[key]
        if int.from_bytes(file.read(8), "little") != storage.size:
            raise ValueError("the file is truncated, or a storage does not have its size")
        size = storage.size * storage.dtype.itemsize
        storage.window = file.window(file.tell(), size)
        file.seek(file.tell() + size)
    return content
