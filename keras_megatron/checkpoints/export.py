"""Writes a model as a folder that Hugging Face's transformers loads."""

import json
import os
import pathlib

import keras

from keras_megatron.checkpoints.architectures import (
    architecture_of,
    default_class_names,
    problem_type,
)
from keras_megatron.checkpoints.assign import model_weights
from keras_megatron.checkpoints.huggingface_config import ACTIVATIONS
from keras_megatron.checkpoints.safetensors_files import save_safetensors
from keras_megatron.checkpoints.staging import staged_folder

# One name for each of our activations; ACTIVATIONS has several for some.
_TO_HUGGING_FACE = {
    **{ours: theirs for theirs, ours in ACTIVATIONS.items()},
    "gelu": "gelu",
    "gelu_approximate": "gelu_new",
    "silu": "silu",
}
_SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def export_to_transformers(model: keras.Model, folder: str | os.PathLike) -> None:
    """Write config.json, model.safetensors and, if the model has a preprocessor, its tokenizer.

    `transformers` loads a backbone as `MegatronBertModel` and a task as its counterpart there. Some
    of these, `MegatronBertForMaskedLM` for one, have no pooler: export the backbone to keep it.

    Args:
        model: `MegatronBertBackbone`, or a task with one.
        folder: The folder to make; it must not exist, or be empty.

    Raises:
        ValueError: Hugging Face's format has no place for something of the model, or the folder
            cannot be written; then nothing of it is left.
    """
    with staged_folder(folder) as staged:
        write_transformers(model, staged)


def write_transformers(model: keras.Model, folder: pathlib.Path) -> None:
    """Do what `export_to_transformers` does, into a folder that is there.

    Raises:
        ValueError: as there.
        OSError: a file cannot be written.
    """
    backbone = getattr(model, "backbone", model)
    architecture = architecture_of(type(model))
    tensors = model_weights(model)
    if "pooler" not in architecture.parts:
        tensors = {k: v for k, v in tensors.items() if not k.startswith("bert.pooler.")}
    if architecture.name == "MegatronBertModel":
        tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    config = _config(backbone, getattr(model, "head_activation", backbone.activation))
    config["architectures"] = [architecture.name]
    config["dtype"] = backbone.token_embedding.variable_dtype
    if architecture.name == "MegatronBertForCausalLM":
        config |= {"is_decoder": True, "add_cross_attention": backbone.cross_attention}
    preprocessor = getattr(model, "preprocessor", None)
    if hasattr(model, "num_classes"):
        config |= _classes(model.num_classes, getattr(preprocessor, "class_names", None))
    if hasattr(model, "multi_label"):
        config["problem_type"] = problem_type(model.num_classes, model.multi_label)
    tokenizer = getattr(preprocessor, "tokenizer", None)
    config["pad_token_id"] = tokenizer.pad_token_id if tokenizer else 0
    _write_json(folder / "config.json", config)
    save_safetensors(folder / "model.safetensors", tensors)
    if tokenizer:
        write_tokenizer(folder, tokenizer, backbone.max_sequence_length)


def _config(backbone, head_activation: str) -> dict:
    """Return a Hugging Face configuration of the backbone."""
    if head_activation != backbone.activation:
        raise ValueError(
            f"the head's activation is {head_activation!r} but the MLP's is "
            f"{backbone.activation!r}: transformers' MegatronBert has one setting for both"
        )
    if backbone.activation not in _TO_HUGGING_FACE:
        raise ValueError(f"transformers has no counterpart of activation {backbone.activation!r}")
    if backbone.apply_residual_connection_post_layernorm:
        raise ValueError(
            "transformers' MegatronBert has its residual connections before LayerNorm, but this "
            "model has apply_residual_connection_post_layernorm=True"
        )
    if backbone.head_dim not in (None, backbone.hidden_dim // backbone.num_heads):
        raise ValueError(
            f"transformers' MegatronBert has no head_dim, but this model's is {backbone.head_dim} "
            f"for hidden_dim {backbone.hidden_dim} and {backbone.num_heads} heads"
        )
    return {
        "model_type": "megatron-bert",
        "vocab_size": backbone.vocabulary_size,
        "hidden_size": backbone.hidden_dim,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_heads,
        "intermediate_size": backbone.intermediate_dim,
        "hidden_act": _TO_HUGGING_FACE[backbone.activation],
        "hidden_dropout_prob": backbone.dropout,
        "attention_probs_dropout_prob": backbone.attention_dropout,
        "max_position_embeddings": backbone.max_sequence_length,
        "type_vocab_size": backbone.num_segments,
        "initializer_range": backbone.initializer_range,
        "layer_norm_eps": backbone.layer_norm_epsilon,
        "tie_word_embeddings": True,
    }


def _classes(count: int, names: list[str] | None) -> dict:
    names = names or default_class_names(count)
    return {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def write_tokenizer(folder: pathlib.Path, tokenizer, longest: int) -> None:
    """Write a tokenizer as transformers loads it, for texts of at most so many tokens."""
    write_vocabulary(folder, tokenizer)
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": tokenizer.lowercase,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        "model_max_length": longest,
        **_SPECIAL_TOKENS,
    }
    _write_json(folder / "tokenizer_config.json", config)


def write_vocabulary(folder: pathlib.Path, tokenizer) -> None:
    """Write vocab.txt, a piece a line."""
    pieces = "".join(f"{piece}\n" for piece in tokenizer.get_vocabulary())
    (folder / "vocab.txt").write_text(pieces, encoding="utf-8")


def _write_json(path: pathlib.Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
