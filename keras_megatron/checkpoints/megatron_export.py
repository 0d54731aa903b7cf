"""Writes a model as a checkpoint that Megatron-LM loads."""

import argparse
import os
import pathlib
from collections.abc import Mapping

import keras
import numpy as np

from keras_megatron.checkpoints.assign import model_weights
from keras_megatron.checkpoints.export import write_vocabulary
from keras_megatron.checkpoints.mapped_files import LazyArray
from keras_megatron.checkpoints.megatron import CLASSIFICATION, MULTIPLE_CHOICE, SEGMENTS
from keras_megatron.checkpoints.megatron_arguments import POST_LAYERNORM
from keras_megatron.checkpoints.megatron_layout import MegatronLayout, shares
from keras_megatron.checkpoints.padded_vocabulary import with_rows
from keras_megatron.checkpoints.shards import rank_folder
from keras_megatron.checkpoints.sources import CHECKPOINTS, TRACKER
from keras_megatron.checkpoints.spellings import spell_as_core, spell_as_legacy
from keras_megatron.checkpoints.staging import staged_folder
from keras_megatron.checkpoints.torch_file_writer import save_torch_file
from keras_megatron.checkpoints.weight_names import model_sizes, weights
from keras_megatron.padding import ROWS_MULTIPLE, padded_vocabulary_size

# Tasks that Megatron-LM has, with the head of fine-tuning that each has there.
_TASKS = {
    "MegatronBertPretrainer": None,
    "MegatronBertMaskedLM": None,
    "MegatronBertTextClassifier": CLASSIFICATION,
    "MegatronBertMultipleChoice": MULTIPLE_CHOICE,
}
_NUM_SEGMENTS = 2
_RELEASE = "release"  # weights without an optimizer's state, from which Megatron-LM starts anew


def export_to_megatron(model: keras.Model, folder: str | os.PathLike, **layout) -> None:
    """Write a checkpoint that Megatron-LM's `--load` takes, and the vocabulary for `--vocab-file`.

    A masked language model whose segments matter gets a binary head of zeros, as Megatron-LM has
    segments only beside one. Rows of words are added, or cut where they stand for no piece, until
    there is a multiple of 128 for each tensor rank, as Megatron-LM does; those that are added have
    probability 0.

    Args:
        model: `MegatronBertPretrainer`, `MegatronBertMaskedLM`, `MegatronBertTextClassifier` or
            `MegatronBertMultipleChoice`.
        folder: The folder to make; it must not exist, or be empty.
        **layout: Of `MegatronLayout`: `tensor_parallel`, `pipeline_parallel`, `virtual_pipeline`,
            `version`, `core`, `transformer_engine`.

    Raises:
        ValueError: Megatron-LM has no place for something of the model, it cannot be split so, or
            the folder cannot be written; then nothing of it is left.

    Example:
    ```python
    masked_lm = MegatronBertMaskedLM.from_preset("megatron_bert_tiny_uncased")
    masked_lm.export_to_megatron("my_checkpoint", tensor_parallel=2)
    ```
    """
    layout = MegatronLayout(**layout)
    with staged_folder(folder) as staged:
        write_megatron(model, staged, layout)


def write_megatron(model: keras.Model, folder: pathlib.Path, layout: MegatronLayout) -> None:
    """Do what `export_to_megatron` does, into a folder that is there.

    Raises:
        ValueError: as there.
        OSError: a file cannot be written.
    """
    name, backbone = _check(model, layout)
    config = backbone.get_config()
    layout.check(config)
    tokenizer = getattr(model.preprocessor, "tokenizer", None)
    pieces = tokenizer.vocabulary_size() if tokenizer else backbone.vocabulary_size
    rows = padded_vocabulary_size(pieces, layout.tensor_parallel)
    named = _by_megatron_names(with_rows(model_weights(model), rows), backbone.num_layers)
    if name == "MegatronBertMaskedLM":
        named = _with_binary_head(named)
    arguments = _arguments(config, rows, layout)
    head = getattr(model, "head_activation", backbone.activation)
    arguments |= _gelus(layout)[backbone.activation, head]
    arguments["bert_binary_head"] = SEGMENTS in named
    uncased = tokenizer is None or tokenizer.lowercase
    arguments["tokenizer_type"] = f"BertWordPiece{'Lower' if uncased else ''}Case"
    checkpoint = {"args": argparse.Namespace(**arguments), "iteration": 0}
    if layout.version:
        checkpoint["checkpoint_version"] = layout.version
    for rank, stage, chunks in shares(named, backbone.num_layers, backbone.num_heads, layout):
        spelled = [_spell(chunk, _TASKS[name], layout) for chunk in chunks]
        keys = ["model"] if len(chunks) == 1 else [f"model{index}" for index in range(len(chunks))]
        place = folder / _RELEASE / rank_folder(rank, stage, layout.pipeline_parallel)
        place.mkdir(parents=True)
        content = {**checkpoint, **dict(zip(keys, spelled, strict=True))}
        save_torch_file(place / CHECKPOINTS[0], content)
    (folder / TRACKER).write_text(_RELEASE, encoding="ascii")
    if tokenizer:
        write_vocabulary(folder, tokenizer)


def _check(model: keras.Model, layout: MegatronLayout) -> tuple[str, keras.Model]:
    """Return the task's name and the backbone, both of which Megatron-LM has."""
    name = next((c.__name__ for c in type(model).__mro__ if c.__name__ in _TASKS), None)
    if name is None:
        raise ValueError(
            f"Megatron-LM has no counterpart of {type(model).__name__}: give its backbone to one "
            f"of {', '.join(_TASKS)}"
        )
    if layout.core and _TASKS[name]:
        raise ValueError(f"Megatron-core has no {_TASKS[name]}: write Megatron-LM's own names")
    backbone = model.backbone
    if backbone.cross_attention:
        raise ValueError("Megatron-LM's BERT has no cross-attention, but this model has")
    if backbone.num_segments != _NUM_SEGMENTS:
        raise ValueError(
            f"Megatron-LM's BERT has {_NUM_SEGMENTS} segments, not {backbone.num_segments}"
        )
    if layout.core and backbone.apply_residual_connection_post_layernorm:
        raise ValueError(
            "Megatron-core has its residual connections before LayerNorm, but this model has "
            "apply_residual_connection_post_layernorm=True: write Megatron-LM's own names"
        )
    head = getattr(model, "head_activation", backbone.activation)
    if (backbone.activation, head) not in _gelus(layout):
        raise ValueError(
            f"{'Megatron-core' if layout.core else 'Megatron-LM'} has no BERT whose MLPs have "
            f"activation {backbone.activation!r} and whose head has {head!r}"
        )
    return name, backbone


def _gelus(layout: MegatronLayout) -> dict[tuple[str, str], dict[str, bool]]:
    """Return arguments by the activations, of MLPs and of the head, that they stand for."""
    gelus = {
        ("gelu", "gelu"): {"bias_gelu_fusion": False, "openai_gelu": False},
        ("gelu_approximate", "gelu"): {"bias_gelu_fusion": True, "openai_gelu": False},
    }
    if not layout.core:
        openai = {"bias_gelu_fusion": False, "openai_gelu": True}
        gelus["gelu_approximate", "gelu_approximate"] = openai
    return gelus


def _by_megatron_names(tensors: Mapping[str, LazyArray], num_layers: int) -> dict[str, LazyArray]:
    rows = (row for row in weights(num_layers) if row.hugging_face in tensors)
    return {row.megatron: tensors[row.hugging_face] for row in rows}


def _with_binary_head(weights: dict[str, LazyArray]) -> dict[str, LazyArray]:
    """Return a masked language model's weights as Megatron-LM builds such a model.

    Segments and a pooler are there only together with a binary head (`bert_binary_head`). A model
    that makes nothing of segments goes without all three, another one gets a head of zeros.
    """
    if not weights[SEGMENTS].read().any():
        left_out = (SEGMENTS, "pooler.")
        return {name: array for name, array in weights.items() if not name.startswith(left_out)}
    table = weights[SEGMENTS]
    shapes = {"binary_head.weight": (2, table.shape[1]), "binary_head.bias": (2,)}
    zeros = {
        name: LazyArray(shape, table.dtype, lambda shape=shape: np.zeros(shape, table.dtype))
        for name, shape in shapes.items()
    }
    return {**weights, **zeros}


def _spell(chunk: dict[str, LazyArray], head: str | None, layout: MegatronLayout) -> dict:
    if layout.core:
        return spell_as_core(chunk, layout.transformer_engine)
    nested = spell_as_legacy(chunk, later=layout.version >= 3)
    if CLASSIFICATION in nested:  # the name that the table has for both
        nested[head] = nested.pop(CLASSIFICATION)
    return nested


def _arguments(config: dict, rows: int, layout: MegatronLayout) -> dict:
    """Return what Megatron-LM compares with its own arguments, and what makes the model."""
    epsilon, length = config["layer_norm_epsilon"], config["max_sequence_length"]
    chunks = layout.pipeline_parallel * layout.virtual_pipeline
    virtual = layout.virtual_pipeline > 1
    return {
        "num_layers": config["num_layers"],
        "hidden_size": config["hidden_dim"],
        "ffn_hidden_size": config["intermediate_dim"],
        "num_attention_heads": config["num_heads"],
        "kv_channels": model_sizes(config)["A"] // config["num_heads"],
        "max_position_embeddings": length,
        "seq_length": length,
        "layernorm_epsilon": epsilon,
        "norm_epsilon": epsilon,
        "hidden_dropout": config["dropout"],
        "attention_dropout": config["attention_dropout"],
        "init_method_std": config["initializer_range"],
        POST_LAYERNORM: config[POST_LAYERNORM],
        "make_vocab_size_divisible_by": ROWS_MULTIPLE,
        "padded_vocab_size": rows,
        # The first is of the time before pipelines. Versions ask for one or the other.
        "model_parallel_size": layout.tensor_parallel,
        "tensor_model_parallel_size": layout.tensor_parallel,
        "pipeline_model_parallel_size": layout.pipeline_parallel,
        "virtual_pipeline_model_parallel_size": layout.virtual_pipeline if virtual else None,
        "num_layers_per_virtual_pipeline_stage": (
            config["num_layers"] // chunks if virtual else None
        ),
    }
