"""What stands for the names that a Megatron-LM checkpoint's pickle may use, tensors aside.

Arguments (`argparse.Namespace`), dictionaries, numpy numbers and arrays, rng states.
"""

import math
import re
from collections.abc import Callable

import numpy as np

from keras_megatron.checkpoints.restricted_pickle import Buildable, Global

_MOST_DIMENSIONS = 32
_LARGEST = 2**53
_NUMERIC_DTYPE = re.compile(r"[<>=|]?[biufc?]\d{0,2}")


class Arguments(Buildable):
    """Stands for `argparse.Namespace`; `values` are its attributes."""

    def __init__(self):
        self.values: dict[str, object] = {}

    def set_state(self, state) -> None:
        """Take the attributes."""
        if not isinstance(state, dict):
            raise ValueError("the pickled arguments are not a dictionary")
        self.values = state


class PickledDict(dict, Buildable):
    """Stands for `collections.OrderedDict`."""

    def set_state(self, state) -> None:
        """Ignore the attributes; torch's state dicts have `_metadata`."""


class PickledDtype(Buildable):
    """Stands for `numpy.dtype`, numbers only."""

    def __init__(self, code, align=False, copy=True):
        if not isinstance(code, str):
            raise ValueError(f"refused: a pickled numpy dtype is a {type(code).__name__}")
        if not _NUMERIC_DTYPE.fullmatch(code):
            raise ValueError(f"refused: a pickled numpy dtype {code[:20]!r} is no number")
        self.dtype = np.dtype(code)

    def set_state(self, state) -> None:
        """Take the byte order; the rest describes dtypes that are refused."""
        _, order, subtype, names, fields = state[:5]
        if order not in ("<", ">", "|", "=") or (subtype, names, fields) != (None, None, None):
            raise ValueError("refused: a pickled numpy dtype is no plain number")
        self.dtype = self.dtype.newbyteorder(order)


class PickledArray(Buildable):
    """Stands for `numpy.ndarray`; `array` is it, once its state is set."""

    def __init__(self, *_):
        self.array = np.zeros(0)

    def set_state(self, state) -> None:
        """Take shape, dtype, order and bytes."""
        shape, dtype, fortran, data = state[-4:]
        sizes_fit = len(shape) <= _MOST_DIMENSIONS and all(
            isinstance(size, int) and 0 <= size < _LARGEST for size in shape
        )
        if not sizes_fit or len(data) != math.prod(shape) * dtype.dtype.itemsize:
            raise ValueError("a pickled numpy array does not have the size of its shape")
        order = "F" if fortran else "C"
        self.array = np.frombuffer(_to_bytes(data), dtype.dtype).reshape(shape, order=order)


class Ignored(Buildable):
    """Stands for a value that has nothing to do with the weights; what it is made of is dropped."""

    def __init__(self, *_):
        pass

    def set_state(self, state) -> None:
        """Drop the state."""


def _numpy_scalar(dtype, data):
    if len(data) != dtype.dtype.itemsize:
        raise ValueError("a pickled numpy number does not have the size of its dtype")
    return np.frombuffer(_to_bytes(data), dtype.dtype)[0]


def _to_bytes(data: str | bytes) -> bytes:
    """Undo Python 2's pickling of bytes as text."""
    return data.encode("latin-1") if isinstance(data, str) else data


def _encode(text, encoding):
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("refused: its pickle encodes text otherwise than as Latin-1")
    return text.encode("latin-1")


def _ordered_dict(items=()):
    result = PickledDict()
    for key, value in items:
        if not isinstance(key, str | int):
            raise ValueError(f"refused: its pickle has a {type(key).__name__} as key")
        result[key] = value
    return result


def _list_for_set(items=()):
    return list(items)


# Classes of values that say nothing about the weights, by the modules that had them over the years:
# enumerations among the arguments, and buffers of Transformer Engine's `_extra_state`.
_IGNORED = (
    *(f"megatron.{module}.ModelType" for module in ("model.enums", "core.enums")),
    *(
        f"megatron.{package}.enums.{name}"
        for package in ("model", "core.transformer")
        for name in ("ModelType", "LayerType", "AttnType", "AttnMaskType", "PositionEmbeddingType")
    ),
    *(f"megatron.core.transformer.enums.{name}" for name in ("AttnBackend", "CudaGraphScope")),
    *("signal.Signals", "_io.BytesIO"),
    # The optimizer's state of float16 runs of 2019 and 2020 has the object itself.
    *(
        f"{package}fp16.loss_scaler.{name}"
        for package in ("", "megatron.")
        for name in ("LossScaler", "DynamicLossScaler")
    ),
)

_FUNCTIONS: dict[str, Callable | None] = {
    "argparse.Namespace": Arguments,
    "collections.OrderedDict": _ordered_dict,
    "_codecs.encode": _encode,
    "__builtin__.set": _list_for_set,
    "builtins.set": _list_for_set,
    "numpy.dtype": PickledDtype,
    "numpy.ndarray": None,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": PickledArray,
    "numpy._core.multiarray._reconstruct": PickledArray,
    **dict.fromkeys(_IGNORED, Ignored),
}
KNOWN_VALUES = {name: Global(name, function) for name, function in _FUNCTIONS.items()}
