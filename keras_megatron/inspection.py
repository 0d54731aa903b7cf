"""Says what a checkpoint or preset holds, without loading its weights."""

import collections
import dataclasses
import math
import os
import pathlib
import reprlib
import tempfile
from collections.abc import Iterable

import h5py
import numpy as np
from keras_hub.src.utils.preset_utils import CONFIG_FILE

from keras_megatron.checkpoints.architectures import named_architectures, parts_of
from keras_megatron.checkpoints.convert import task_of
from keras_megatron.checkpoints.huggingface import keys_left_out, open_weights, read_json
from keras_megatron.checkpoints.huggingface_config import backbone_config
from keras_megatron.checkpoints.mapped_files import LazyArray
from keras_megatron.checkpoints.megatron import MegatronCheckpoint, read_megatron
from keras_megatron.checkpoints.megatron_arguments import argument_values, checkpoint_version
from keras_megatron.checkpoints.restricted_pickle import Global
from keras_megatron.checkpoints.shards import Shard, chunks_of
from keras_megatron.checkpoints.sources import open_checkpoint
from keras_megatron.checkpoints.spellings import flatten, is_of_core
from keras_megatron.checkpoints.vocabulary_rows import choose_tokenizer, cut_padding
from keras_megatron.checkpoints.weight_names import weights
from keras_megatron.conversion import KERAS, TRANSFORMERS, source_format
from keras_megatron.presets.cache import cached_folder
from keras_megatron.presets.hugging_face import local_folder
from keras_megatron.presets.registry import find
from keras_megatron.presets.stored_task import class_of

_LONGEST_VALUE = 200
# What a Megatron checkpoint has beside what becomes a model.
_READ = ("args", "checkpoint_version", "iteration")


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A stored tensor.

    Attributes:
        name: As the files have it.
        shape: Its shape there.
        dtype: Name of its numbers' type.
        shards: Files that have one of this name, shape and type.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    shards: int = 1

    @property
    def size(self) -> int:
        """Numbers in it, of all shards."""
        return math.prod(self.shape) * self.shards


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a checkpoint or preset holds.

    Attributes:
        format: Which format it has.
        notes: What a conversion would make of it, one line each.
        settings: Arguments of `MegatronBertBackbone` that follow from it.
        arguments: As it has them: Megatron-LM's, or those of transformers' config.json.
        tensors: Stored tensors.
        dropped: What no conversion takes: the optimizer's state, heads that its task has not.
    """

    format: str
    notes: list[str]
    settings: dict
    arguments: dict
    tensors: list[TensorInfo]
    dropped: list[str]


def inspect_checkpoint(source: str | os.PathLike) -> Inspection:
    """Say what a checkpoint or preset holds, without loading its weights.

    A Megatron checkpoint that is no whole BERT is shown too; its last note says what is wrong.

    Args:
        source: As of `keras_megatron.conversion.convert`.

    Raises:
        ValueError: in one line: a file is missing, damaged or hostile.

    Example:
    ```python
    from keras_megatron.inspection import inspect_checkpoint

    found = inspect_checkpoint("megatron_bert_tiny_uncased")
    assert found.settings["num_layers"] == 4
    ```
    """
    found = source_format(source)
    if found == KERAS:
        return _keras_preset(os.fspath(source))
    if found == TRANSFORMERS:
        return _transformers(local_folder(os.fspath(source)))
    with tempfile.TemporaryDirectory() as scratch:
        return _megatron(open_checkpoint(source, pathlib.Path(scratch)))


# === Megatron ===


def _megatron(shards: list[Shard]) -> Inspection:
    tensors = [tensor for shard in shards for tensor in _flat(shard)]
    first = shards[0].content
    named = "Megatron-core" if is_of_core(name for name, _ in tensors) else "Megatron-LM"
    notes = [f"iteration {first['iteration']}"] if "iteration" in first else []
    dropped = [str(key) for key in first if key not in _READ and not _is_model(str(key))]
    settings: dict = {}
    try:
        checkpoint = _without_padding(read_megatron(shards))
    except ValueError as error:
        notes.append(f"cannot be converted: {error}")
    else:
        task, _ = task_of(checkpoint)
        notes += [*checkpoint.notes, f"becomes a {task.__name__}"]
        settings = checkpoint.config
        dropped += _other_heads(checkpoint, task)
    return Inspection(
        f"{named}, checkpoint version {checkpoint_version(first):g}",
        notes,
        settings,
        {name: _plain(value) for name, value in argument_values(first).items()},
        _grouped(tensors),
        dropped,
    )


def _flat(shard: Shard) -> list[tuple[str, LazyArray]]:
    return [item for chunk in chunks_of(shard) for item in flatten(chunk).items()]


def _is_model(key: str) -> bool:
    return key.rstrip("0123456789") == "model" or is_of_core([key])


def _without_padding(checkpoint: MegatronCheckpoint) -> MegatronCheckpoint:
    """Cut the rows that a conversion cuts if it is told no vocabulary."""
    try:
        rows = checkpoint.config["vocabulary_size"]
        tokenizer = choose_tokenizer(None, rows, checkpoint.tensor_size)
    except ValueError as error:
        return dataclasses.replace(checkpoint, notes=[*checkpoint.notes, str(error)])
    return cut_padding(checkpoint, tokenizer.vocabulary_size())


def _other_heads(checkpoint: MegatronCheckpoint, task: type) -> list[str]:
    taken = parts_of(task.__name__)
    rows = weights(checkpoint.config["num_layers"])
    return [
        row.megatron
        for row in rows
        if row.hugging_face in checkpoint.weights and row.part not in taken
    ]


def _plain(value):
    """Return a value as JSON has it, or in words."""
    if isinstance(value, Global):  # a dtype of torch, a class of Megatron-LM
        return value.name
    if isinstance(value, np.number):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(v, int | float | str) for v in value):
        return list(value)
    return reprlib.repr(value)[:_LONGEST_VALUE]  # not all of it: a few bytes can nest it deep


def _grouped(tensors: Iterable[tuple[str, LazyArray]]) -> list[TensorInfo]:
    counts = collections.Counter(
        (name, tensor.shape, tensor.dtype.name) for name, tensor in tensors
    )
    return [TensorInfo(*described, shards=count) for described, count in counts.items()]


# === transformers and Keras ===


def _transformers(folder: pathlib.Path) -> Inspection:
    config, tensors = read_json(folder / CONFIG_FILE), open_weights(folder)
    settings = backbone_config(config)
    cls = class_of(str(folder))
    return Inspection(
        f"transformers ({', '.join(sorted(named_architectures(config))) or 'no architecture'})",
        [f"becomes a {cls.__name__}"],
        settings,
        config,
        _grouped(tensors.items()),
        keys_left_out(tensors, settings, cls.__name__),
    )


def _keras_preset(source: str) -> Inspection:
    if "://" in source:
        raise ValueError(f"{source} is not on this machine: give a folder, or the name of a preset")
    named = find(source)
    folder = pathlib.Path(source)
    if named:
        folder = named.directory if named.embedded else cached_folder(source)
        settings = named.backbone_arguments()
    else:
        settings = _backbone_settings(folder)
    notes = [f"saved from a {class_of(str(folder) if folder else source).__name__}"]
    if not folder:
        notes = ["its weights are not there yet: they are downloaded on first use"]
    files = sorted(folder.glob("*.weights.h5")) if folder else []
    tensors = [tensor for file in files for tensor in _of_hdf5(file)]
    return Inspection("Keras preset", notes, settings, {}, tensors, [])


def _backbone_settings(folder: pathlib.Path) -> dict:
    settings = read_json(folder / CONFIG_FILE).get("config")
    if not isinstance(settings, dict):
        raise ValueError(f"{folder / CONFIG_FILE} is no configuration of a Keras preset")
    return {name: _plain(value) for name, value in settings.items()}


def _of_hdf5(file: pathlib.Path) -> list[TensorInfo]:
    found = []

    def visit(name: str, item) -> None:
        if isinstance(item, h5py.Dataset):
            dtype = item.attrs.get("dtype", item.dtype.name)
            found.append(TensorInfo(f"{file.name}: {name}", item.shape, dtype))

    try:
        with h5py.File(file) as opened:
            opened.visititems(visit)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    return found
