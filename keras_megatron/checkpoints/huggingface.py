"""Reads Hugging Face's Megatron BERT: a folder with config.json and weights."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping

import keras

from keras_megatron.checkpoints.architectures import (
    architecture_of,
    named_architectures,
    parts_of,
    promised_parts,
)
from keras_megatron.checkpoints.assign import HEAD_PREFIXES, assign_weights, check_weights
from keras_megatron.checkpoints.huggingface_config import backbone_config
from keras_megatron.checkpoints.mapped_files import LazyArray, MappedFile, same_numbers
from keras_megatron.checkpoints.one_line import LONGEST_NAME, one_line
from keras_megatron.checkpoints.padded_vocabulary import with_rows
from keras_megatron.checkpoints.safetensors_files import load_safetensors
from keras_megatron.checkpoints.staging import reason
from keras_megatron.checkpoints.torch_files import load_torch_file
from keras_megatron.checkpoints.weight_names import model_sizes, weights
from keras_megatron.user_warnings import warn_user

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_WORDS = "bert.embeddings.word_embeddings.weight"
_CLASSIFIER = HEAD_PREFIXES["classifier"]
# What is said of a part that a folder lacks.
_CALLED = {
    "pooler": "pooler: pooled_output is",
    "mlm_head": "masked-language-model head: it is",
    "binary_head": "sentence-order head: it is",
    "classifier": "head of this task: it is",
    "qa_outputs": "head of this task: it is",
}
_BIAS = "cls.predictions.bias"
_DECODER = "cls.predictions.decoder"


def load_weights(model: keras.Model, folder: str | os.PathLike) -> list[str]:
    """Fill a model from a Hugging Face folder.

    Args:
        model: `MegatronBertBackbone`, or a task with one, of the folder's configuration; its
            vocabulary may be larger, see `padded_vocabulary`.
        folder: Holds config.json and the weights, as safetensors or `pytorch_model.bin`, in one
            file or several.

    Returns:
        Keys of heads that the model does not have.

    Raises:
        ValueError: a file cannot be read, or a weight is missing, unknown or of the wrong shape.
            The model has not changed.

    Warns:
        UserWarning: the folder has no weights for the model's head or pooler, which stay random.
    """
    folder = pathlib.Path(folder)
    config = read_json(folder / "config.json")
    own = architecture_of(type(model))
    named, promised = named_architectures(config), promised_parts(config)
    source, foreign = open_weights(folder), {}
    rows = getattr(model, "backbone", model).vocabulary_size
    if rows > backbone_config(config)["vocabulary_size"]:
        source = with_rows(source, rows)
    if own and named and own.name not in named:
        # Three tasks call their heads "classifier": that of another task is not this one's.
        foreign = {name: source.pop(name) for name in list(source) if name.startswith(_CLASSIFIER)}
    optional = {"pooler", *HEAD_PREFIXES} - (set() if foreign else promised - {"pooler"})
    unused, missing = assign_weights(model, source, optional)
    for part in sorted(missing & own.parts if own else missing):
        warn_user(f"{folder} has no {_CALLED[part]} random")
    return sorted([*unused, *foreign])


def keys_left_out(keys: Iterable[str], settings: Mapping, task: str) -> list[str]:
    """Return the keys of a folder's weights that a class has no place for.

    Args:
        keys: all of them, as `open_weights` names them.
        settings: arguments of the backbone.
        task: name of the class, of a task or the backbone.
    """
    taken = parts_of(task)
    rows = weights(settings["num_layers"], settings["cross_attention"])
    return sorted(set(keys) - {row.hugging_face for row in rows if row.part in taken})


def check_folder(folder: str | os.PathLike, arguments: Mapping) -> bool:
    """Check that a folder has a backbone's weights, before one of such a size takes memory.

    Args:
        folder: As of `load_weights`.
        arguments: Of `MegatronBertBackbone`.

    Returns:
        Whether it has the pooler's too.

    Raises:
        ValueError: a weight is missing or of another shape, or a file cannot be read.
    """
    rows = weights(arguments["num_layers"], arguments["cross_attention"])
    encoder = (row for row in rows if row.part == "backbone")
    source = open_weights(folder)
    check_weights(source, encoder, model_sizes(arguments), "hugging_face")
    return any(name.startswith("bert.pooler.") for name in source)


def open_weights(folder: str | os.PathLike) -> dict[str, LazyArray]:
    """Open the weights of a Hugging Face folder without reading them.

    Returns:
        Weights by their names with `bert.`, also where the folder's leave it out; without copies of
        tied weights, which are checked, and without buffers.

    Raises:
        ValueError: there are none, or a file is damaged or holds what is not weights.
    """
    folder = pathlib.Path(folder)
    name = next((name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if name is None:
        raise ValueError(f"{folder} has no weights: none of {', '.join(_WEIGHT_FILES)}")
    tensors: dict[str, LazyArray] = {}
    for file in _shards(folder / name):
        for key, tensor in _load(file).items():
            named = isinstance(key, str) and len(key) <= LONGEST_NAME
            if not named or not isinstance(tensor, LazyArray) or key in tensors:
                raise ValueError(f"{file}: {str(key)[:100]!r} is no tensor, or there twice")
            tensors[key] = tensor
    if not any(key.startswith("bert.") for key in tensors):
        bare = ("embeddings.", "encoder.", "pooler.")
        tensors = {f"bert.{k}" if k.startswith(bare) else k: v for k, v in tensors.items()}
    tensors.pop("bert.embeddings.position_ids", None)
    _drop_tied_copies(tensors)
    return tensors


def read_json(path: pathlib.Path) -> dict:
    """Read a JSON file that holds an object.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return content


def _shards(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the files that hold the weights: those that an index names, or the one file itself."""
    if path.suffix != ".json":
        return [path]
    shards = read_json(path).get("weight_map")
    names = list(shards.values()) if isinstance(shards, dict) else [None]
    for name in names:
        plain = isinstance(name, str) and name.isprintable() and 0 < len(name) <= LONGEST_NAME
        if not plain or pathlib.PurePath(name).name != name:
            raise ValueError(f"{path} must map each weight to a file beside it")
    return [path.with_name(name) for name in sorted(set(names))]


def _load(path: pathlib.Path) -> dict:
    try:
        file = MappedFile.open(path)
        if path.suffix == ".safetensors":
            return load_safetensors(file)
        content = load_torch_file(file)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a dictionary of weights")
    return content


def _drop_tied_copies(tensors: dict[str, LazyArray]) -> None:
    """Drop what transformers stores twice at times: the output's weight and bias."""
    for suffix, original in (("weight", _WORDS), ("bias", _BIAS)):
        name = f"{_DECODER}.{suffix}"
        copy = tensors.pop(name, None)
        if copy and original == _BIAS:
            tensors.setdefault(_BIAS, copy)
        if copy and not (original in tensors and same_numbers(copy, tensors[original])):
            raise ValueError(f"{name!r} is not equal to {original!r}: untied heads are unsupported")
