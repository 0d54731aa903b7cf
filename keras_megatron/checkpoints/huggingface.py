"""Reads Hugging Face's Megatron BERT: a folder with config.json and weights."""

import json
import os
import pathlib
import warnings
from collections.abc import Mapping

import keras

from keras_megatron.checkpoints.assign import assign_weights, has_part
from keras_megatron.checkpoints.mapped_files import LazyArray, MappedFile, same_numbers
from keras_megatron.checkpoints.safetensors_files import load_safetensors
from keras_megatron.checkpoints.torch_files import load_torch_file

# Hugging Face's activations by name; those of the same name in both are not all the same function.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_approximate",
    "gelu_fast": "gelu_approximate",
    "gelu_pytorch_tanh": "gelu_approximate",
    "relu": "relu",
    "relu6": "relu6",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}
_DEFAULTS = {  # of transformers' MegatronBertConfig
    "vocab_size": 29056,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
}
# Settings that make the model another one than this package's, with the values that do not.
_SUPPORTED = {
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "position_embedding_type": ("absolute", None),
}
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_HEAD_ARCHITECTURES = ("MegatronBertForMaskedLM", "MegatronBertForPreTraining")
_WORDS = "bert.embeddings.word_embeddings.weight"
_BIAS = "cls.predictions.bias"
_DECODER = "cls.predictions.decoder"


def backbone_config(config: Mapping) -> dict:
    """Translate a Hugging Face configuration.

    Args:
        config: The content of config.json.

    Returns:
        Arguments of `MegatronBertBackbone`.

    Raises:
        ValueError: the configuration is of a model that this package does not have.
    """
    given = {**_DEFAULTS, **{key: config[key] for key in _DEFAULTS if config.get(key) is not None}}
    for name, allowed in _SUPPORTED.items():
        if config.get(name) not in allowed:
            raise ValueError(f"config.json has {name}={config[name]!r}, which is not supported")
    if given["hidden_act"] not in ACTIVATIONS:
        raise ValueError(
            f"config.json has the activation {given['hidden_act']!r}; known are "
            f"{', '.join(sorted(ACTIVATIONS))}"
        )
    return {
        "vocabulary_size": given["vocab_size"],
        "num_layers": given["num_hidden_layers"],
        "num_heads": given["num_attention_heads"],
        "hidden_dim": given["hidden_size"],
        "intermediate_dim": given["intermediate_size"],
        "dropout": given["hidden_dropout_prob"],
        "attention_dropout": given["attention_probs_dropout_prob"],
        "max_sequence_length": given["max_position_embeddings"],
        "num_segments": given["type_vocab_size"],
        "layer_norm_epsilon": given["layer_norm_eps"],
        "activation": ACTIVATIONS[given["hidden_act"]],
        "initializer_range": given["initializer_range"],
    }


def masked_lm_config(config: Mapping) -> dict:
    """Return the arguments of `MegatronBertMaskedLM` that a Hugging Face configuration implies."""
    return {"head_activation": backbone_config(config)["activation"]}


def load_weights(model: keras.Model, folder: str | os.PathLike) -> list[str]:
    """Fill a model from a Hugging Face folder.

    Args:
        model: `MegatronBertBackbone` or `MegatronBertMaskedLM` of the folder's configuration.
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
    source = open_weights(folder)
    optional = {"pooler"}
    if not set(_HEAD_ARCHITECTURES).intersection(config.get("architectures") or ()):
        optional.add("mlm_head")
    unused, missing = assign_weights(model, source, optional)
    if not has_part(model, "mlm_head") and "pooler" in missing:
        warnings.warn(f"{folder} has no pooler: pooled_output is random", stacklevel=2)
    if "mlm_head" in missing:
        warnings.warn(f"{folder} has no masked-language-model head: it is random", stacklevel=2)
    return unused


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
            if not isinstance(tensor, LazyArray) or key in tensors:
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
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
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
        if not isinstance(name, str) or pathlib.PurePath(name).name != name:
            raise ValueError(f"{path} must map each weight to a file beside it")
    return [path.with_name(name) for name in sorted(set(names))]


def _load(path: pathlib.Path) -> dict:
    try:
        file = MappedFile.open(path)
        if path.suffix == ".safetensors":
            return load_safetensors(file)
        content = load_torch_file(file)
    except (ValueError, OSError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
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
