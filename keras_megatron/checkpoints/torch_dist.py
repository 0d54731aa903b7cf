"""Reads Megatron-core's `torch_dist` checkpoints: one for any number of ranks, without torch.

A folder has `.metadata` (the tables), `__R_W.distcp` (pieces of tensors, each as `torch.save`
writes it) and `common.pt` (arguments and the like). Layers are stacked on a leading axis, or have
numbers in their names if they were not alike. Written by `torch.distributed.checkpoint`.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping

import numpy as np

from keras_megatron.checkpoints.mapped_files import LazyArray, MappedFile
from keras_megatron.checkpoints.megatron_arguments import (
    PIPELINE_SIZES,
    TENSOR_SIZES,
    argument_values,
)
from keras_megatron.checkpoints.one_line import LONGEST_NAME
from keras_megatron.checkpoints.torch_dist_metadata import (
    PIECES,
    Piece,
    StoredTensor,
    read_metadata,
)
from keras_megatron.checkpoints.torch_files import load_torch_file

__all__ = ["METADATA", "PIECES", "read_torch_dist"]

METADATA = ".metadata"
_COMMON = "common.pt"
# Beside the model: the optimizer's state, and that of random numbers, of replays and schedules.
_NO_WEIGHT = re.compile(r"(optimizer|chained_\d+|rng_state|rerun_state|opt_param_scheduler)\b.*")
_STACKED = re.compile(r"(.*\blayers\.)(?!\d+\.)(.+)")
_MOST_LAYERS = 10_000


def read_torch_dist(open_file: Callable[[str], MappedFile], has: Callable[[str], bool]) -> dict:
    """Read a checkpoint in the form that one rank's file has.

    Args:
        open_file: Maps a file of the checkpoint's folder.
        has: Says whether it has a file.

    Returns:
        `model` with the tensors by Megatron-core's names, a layer's each with its number; `args`
        and what else is common to all ranks.

    Raises:
        ValueError: a file is missing, damaged or hostile.
    """
    stored = _read(METADATA, lambda: read_metadata(open_file(METADATA), _is_weight))
    common = _read(_COMMON, lambda: load_torch_file(open_file(_COMMON))) if has(_COMMON) else {}
    if not isinstance(common, dict):
        raise ValueError(f"{_COMMON} does not hold a dictionary")
    files: dict[str, MappedFile] = {}
    for name in sorted({piece.file for tensor in stored.values() for piece in tensor.pieces}):
        if not has(name):
            raise ValueError(f"{name} is missing, which has a part of the weights")
        files[name] = open_file(name)
    _check_lengths(stored, files)
    model: dict[str, LazyArray] = {}
    for name, tensor in stored.items():
        for own_name, array in _layers(name, tensor, files):
            if own_name in model:
                raise ValueError(f"{own_name!r} is there twice")
            model[own_name] = array
    if model and all(name.startswith("model.") for name in model):
        model = {name.removeprefix("model."): array for name, array in model.items()}
    sizes = (*TENSOR_SIZES, *PIPELINE_SIZES)  # of the run: its ranks are joined here
    arguments = {k: v for k, v in argument_values(common).items() if k not in sizes}
    return {**common, "args": arguments, "model": model}


def _is_weight(name) -> bool:
    if isinstance(name, str) and len(name) > LONGEST_NAME:
        raise ValueError(f"its metadata has a name of {len(name)} characters")
    return isinstance(name, str) and not _NO_WEIGHT.fullmatch(name)


def _read(name: str, read: Callable):
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_lengths(stored: Mapping[str, StoredTensor], files: Mapping[str, MappedFile]) -> None:
    """Refuse pieces that share bytes: a small file would make a huge model."""
    claimed = dict.fromkeys(files, 0)
    for piece in itertools.chain.from_iterable(tensor.pieces for tensor in stored.values()):
        claimed[piece.file] += piece.length
    for name, size in claimed.items():
        if size > len(files[name]):
            raise ValueError(f"{name} is truncated: its {len(files[name])} bytes are not {size}")


def _layers(name: str, tensor: StoredTensor, files: Mapping[str, MappedFile]):
    """Yield a tensor with its name, or if it is a stack of layers' each layer's."""
    pieces = [(piece, _open_piece(name, piece, tensor.dtype, files)) for piece in tensor.pieces]
    match = _STACKED.fullmatch(name)
    if not match or not tensor.shape:
        yield name, _assembled(tensor.shape, tensor.dtype, pieces)
        return
    layers, *shape = tensor.shape
    if layers > _MOST_LAYERS:
        raise ValueError(f"{name!r} has {layers} layers")
    for layer in range(layers):
        read = functools.partial(_read_layer, tuple(shape), tensor.dtype, pieces, layer)
        yield f"{match[1]}{layer}.{match[2]}", LazyArray(tuple(shape), tensor.dtype, read)


def _open_piece(
    name: str, piece: Piece, dtype: np.dtype, files: Mapping[str, MappedFile]
) -> LazyArray:
    """Open a piece, which must be an array of the shape that the tables say."""
    window = _read(piece.file, lambda: files[piece.file].window(piece.start, piece.length))
    array = _read(piece.file, lambda: load_torch_file(window))
    if not isinstance(array, LazyArray) or (array.shape, array.dtype) != (piece.sizes, dtype):
        raise ValueError(f"{piece.file}: the part of {name!r} is no {dtype} array {piece.sizes}")
    return array


def _read_layer(
    shape: tuple[int, ...], dtype: np.dtype, pieces: list[tuple[Piece, LazyArray]], layer: int
) -> np.ndarray:
    """Read one layer of a stack that pieces cover."""
    of_layer = []
    for piece, array in pieces:
        index = layer - piece.offsets[0]
        if 0 <= index < piece.sizes[0]:
            flat = dataclasses.replace(piece, offsets=piece.offsets[1:], sizes=piece.sizes[1:])
            of_layer.append((flat, _layer_of(array, index)))
    return _assembled(shape, dtype, of_layer).read()


def _layer_of(stack: LazyArray, index: int) -> LazyArray:
    return LazyArray(stack.shape[1:], stack.dtype, lambda: stack.read()[index])


def _assembled(
    shape: tuple[int, ...], dtype: np.dtype, pieces: list[tuple[Piece, LazyArray]]
) -> LazyArray:
    """Return the array that pieces cover."""
    if len(pieces) == 1:
        return pieces[0][1]

    def read() -> np.ndarray:
        whole = np.empty(shape, dtype)
        for piece, array in pieces:
            spans = zip(piece.offsets, piece.sizes, strict=True)
            whole[tuple(slice(start, start + size) for start, size in spans)] = array.read()
        return whole

    return LazyArray(shape, dtype, read)
