"""Reads `.metadata`: which tensors a `torch_dist` checkpoint has, and where their pieces are.

It is a pickle of dataclasses of `torch.distributed.checkpoint.metadata`; records stand for them,
and nothing of torch is imported.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from keras_megatron.checkpoints.mapped_files import MappedFile
from keras_megatron.checkpoints.pickled_values import Ignored
from keras_megatron.checkpoints.restricted_pickle import Buildable, Global, load_pickle
from keras_megatron.checkpoints.torch_files import DTYPES, KNOWN, LARGEST, MOST_DIMENSIONS

PIECES = ".distcp"
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}" + re.escape(PIECES))
_MOST_PIECES = 4096


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a tensor, and where it is stored.

    Attributes:
        offsets: Where it begins in the tensor, a number a dimension.
        sizes: Its shape.
        file: Name of the file that has it.
        start: Where in the file.
        length: Its bytes in the file, which are a file of `torch.save`.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of a `torch_dist` checkpoint.

    Attributes:
        shape: Its shape.
        dtype: Its numpy dtype.
        pieces: They cover it, each number once.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[Piece, ...]


def read_metadata(file: MappedFile, wanted: Callable[[str], bool]) -> dict[str, StoredTensor]:
    """Read the tables of a `torch_dist` checkpoint.

    Args:
        file: `.metadata`.
        wanted: Says of a tensor's name whether it is.

    Returns:
        The wanted tensors, by their names.

    Raises:
        ValueError: the file is damaged or hostile, or a tensor's pieces do not cover it.
    """
    top = load_pickle(file, _KNOWN)
    tables = _field(top, "Metadata", "state_dict_metadata"), _field(top, "Metadata", "storage_data")
    if not all(isinstance(table, dict) for table in tables):
        raise ValueError("its metadata has no tables of tensors")
    places = {}
    for index, place in tables[1].items():
        name = _field(index, "MetadataIndex", "fqn")
        offset = _field(index, "MetadataIndex", "offset", None)
        # Types first: tuples nested in tuples are hashed, and spelled out, without end.
        if isinstance(name, str):
            places[name, _numbers(() if offset is None else offset)] = place
    return {
        name: _tensor(name, tensor, places)
        for name, tensor in tables[0].items()
        if isinstance(tensor, _Record) and tensor.kind == "TensorStorageMetadata" and wanted(name)
    }


class _Record(Buildable):
    """Stands for an object of a dataclass; `values` are its attributes."""

    as_key = True

    def __init__(self, kind: str):
        self.kind = kind
        self.values: dict[str, object] = {}

    def set_state(self, state) -> None:
        """Take the attributes. Tensors' properties come as a tuple, their dtype first."""
        if self.kind == "TensorProperties" and isinstance(state, tuple) and state:
            state = {"dtype": state[0]}
        if not isinstance(state, dict):
            raise ValueError(f"the metadata's {self.kind} is no dictionary")
        self.values = state


_RECORDS = {
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("TensorProperties", "ChunkStorageMetadata", "StorageMeta"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
}
# What a save keeps for the next one, and what describes memory.
_IGNORED = (
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
    *(
        f"torch.distributed.checkpoint.planner.{name}"
        for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")
    ),
    *(
        f"megatron.core.dist_checkpointing.strategies.torch.{name}"
        for name in ("MCoreSavePlan", "MCoreMetadata")
    ),
    *("torch.serialization._get_layout", "pathlib.PosixPath", "pathlib._local.PosixPath"),
)
_KNOWN: Mapping[str, Global] = {
    **{name: Global(name, known.function) for name, known in KNOWN.items()},
    **{name: Global(name, Ignored) for name in _IGNORED},
    **{
        f"{module}.{kind}": Global(kind, functools.partial(_Record, kind))
        for module, kinds in _RECORDS.items()
        for kind in kinds
    },
}


def _field(record, kind: str, name: str, *default):
    if not isinstance(record, _Record) or record.kind != kind:
        raise ValueError(f"its metadata has a {type(record).__name__} where a {kind} belongs")
    if name not in record.values and not default:
        raise ValueError(f"its metadata has a {kind} without {name}")
    return record.values.get(name, *default)


def _numbers(values) -> tuple[int, ...]:
    """Return a shape or offset."""
    good = isinstance(values, tuple | list) and len(values) <= MOST_DIMENSIONS
    if not good or not all(type(value) is int and 0 <= value < LARGEST for value in values):
        raise ValueError("its metadata has a shape or offset that makes no sense")
    return tuple(values)


def _tensor(name: str, record: _Record, places: Mapping) -> StoredTensor:
    """Check a tensor's pieces: they lie in it, none overlaps another, together they cover it."""
    properties = _field(record, "TensorStorageMetadata", "properties")
    dtype = _field(properties, "TensorProperties", "dtype")
    dtype = DTYPES.get(dtype.name.removeprefix("torch.")) if isinstance(dtype, Global) else None
    if dtype is None:
        raise ValueError(f"{name!r} has numbers of a type that is not supported")
    shape = _numbers(_field(record, "TensorStorageMetadata", "size"))
    chunks = _field(record, "TensorStorageMetadata", "chunks")
    if not isinstance(chunks, list) or not 0 < len(chunks) <= _MOST_PIECES:
        raise ValueError(f"{name!r} is not in 1 to {_MOST_PIECES} pieces")
    pieces = tuple(_piece(name, chunk, places) for chunk in chunks)
    for piece in pieces:
        if not len(piece.offsets) == len(piece.sizes) == len(shape) or 0 in piece.sizes:
            raise ValueError(f"{name!r} of shape {shape} has a piece of other dimensions")
    starts = np.array([piece.offsets for piece in pieces], "i8")
    ends = starts + np.array([piece.sizes for piece in pieces], "i8")
    volume = sum(math.prod(piece.sizes) for piece in pieces)
    if (ends > np.array(shape, "i8")).any() or volume != math.prod(shape) or _overlap(starts, ends):
        raise ValueError(f"{name!r} of shape {shape} is not covered by its pieces, each part once")
    return StoredTensor(shape, dtype, pieces)


def _overlap(starts: np.ndarray, ends: np.ndarray) -> bool:
    """Say whether two of some boxes overlap; starts and ends are (boxes, dimensions)."""
    return any(
        ((starts[index] < ends[:index]) & (starts[:index] < ends[index])).all(axis=1).any()
        for index in range(1, len(starts))
    )


def _piece(name: str, chunk, places: Mapping) -> Piece:
    offsets = _numbers(_field(chunk, "ChunkStorageMetadata", "offsets"))
    sizes = _numbers(_field(chunk, "ChunkStorageMetadata", "sizes"))
    place = places.get((name, offsets))
    if place is None:
        raise ValueError(f"its metadata does not say where {name!r} is stored")
    file = _field(place, "_StorageInfo", "relative_path")
    if not isinstance(file, str):
        raise ValueError(f"refused: {name!r} is in a {type(file).__name__}, no file's name")
    if not _FILE.fullmatch(file):
        raise ValueError(f"refused: {name!r} is in {file[:100]!r}, no file beside .metadata")
    if _field(place, "_StorageInfo", "transform_descriptors", None):
        raise ValueError(f"{name!r} is compressed or encrypted: save the checkpoint without that")
    span = _field(place, "_StorageInfo", "offset"), _field(place, "_StorageInfo", "length")
    return Piece(offsets, sizes, file, *_numbers(span))
