"""Reads the model out of a Megatron-LM checkpoint, whatever its version, spelling and sharding."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from keras_megatron.checkpoints.assign import check_weights
from keras_megatron.checkpoints.mapped_files import LazyArray
from keras_megatron.checkpoints.megatron_arguments import (
    checkpoint_version,
    choose_settings,
    number,
    read_arguments,
)
from keras_megatron.checkpoints.query_key_value import split_query_key_value
from keras_megatron.checkpoints.shards import (
    LAYER,
    WORDS,
    Shard,
    check_grid,
    drop_tied_copy,
    merge_ranks,
    merge_stages,
)
from keras_megatron.checkpoints.weight_names import model_sizes, weights

_PARTS = ("backbone", "pooler", "mlm_head", "binary_head", "classifier")
SEGMENTS = "embedding.tokentype_embeddings.weight"
CLASSIFICATION = "classification_head"
MULTIPLE_CHOICE = "multichoice_head"
_CORE_VERSION = 2.0


@dataclasses.dataclass(frozen=True)
class MegatronCheckpoint:
    """A checkpoint's model.

    Attributes:
        config: Arguments of `MegatronBertBackbone`.
        head_activation: Activation of the masked language model's head.
        weights: In torch orientation, by their Hugging Face names.
        fine_tuned: `"classification_head"` or `"multichoice_head"`, or None if it has neither; the
            weights of either are called `classifier`.
        tensor_size: Ranks that its layers were split over.
        notes: How each setting was decided, one line each.
    """

    config: dict[str, int | float | str]
    head_activation: str
    weights: dict[str, LazyArray]
    fine_tuned: str | None
    tensor_size: int
    notes: list[str]


def read_megatron(
    shards: Sequence[Shard],
    num_heads: int | None = None,
    layer_norm_epsilon: float | None = None,
    mlp_activation: str | None = None,
) -> MegatronCheckpoint:
    """Find configuration and weights in what Megatron-LM saved.

    Args:
        shards: As `open_checkpoint` returns them.
        num_heads: Attention heads; from the checkpoint's arguments, else hidden / 64, if None.
        layer_norm_epsilon: From the checkpoint's arguments, else 1e-5, if None.
        mlp_activation: `"gelu"` or `"gelu_approximate"`; by the checkpoint's arguments if None.

    Raises:
        ValueError: the shards are not all of one whole BERT, or a key is missing, unknown or of the
            wrong shape.
    """
    check_grid(shards)
    state = shards[0].content
    arguments, version = read_arguments(state), checkpoint_version(state)
    ranks, of_core = merge_stages(shards)
    if of_core:
        version = max(version, _CORE_VERSION)
    _, hidden = _shape(ranks[0], WORDS, 2)
    attention = _attention_dim(ranks)
    chosen, head_activation, notes = choose_settings(
        arguments, hidden, attention, num_heads, layer_norm_epsilon, mlp_activation, of_core
    )
    names = "Megatron-core's names" if of_core else f"checkpoint version {version:g}"
    split = f", {len(shards)} shards, {len(ranks)} for each layer" if len(shards) > 1 else ""
    notes.insert(0, names + split)
    tensors = _join(ranks, chosen["num_heads"], attention, version)
    if SEGMENTS not in tensors:
        shape = (2, hidden)
        tensors[SEGMENTS] = LazyArray(shape, np.dtype("f4"), lambda: np.zeros(shape, "f4"))
        notes.append("no token-type embeddings in the checkpoint: zeros")
    config = {**_sizes(tensors, number(arguments, "num_layers")), **chosen}
    fine_tuned = _rename_fine_tuned_head(tensors)
    table = _table(tensors, config["num_layers"], fine_tuned)
    if not any(row.part == "pooler" for row in table):
        notes.append("no pooler in the checkpoint: random, for fine-tuning to train")
    classifier = [row for row in table if row.part == "classifier"]
    others = [row for row in table if row.part != "classifier"]
    check_weights(tensors, others, model_sizes(config), "megatron")
    if classifier:
        labels, _ = _shape(tensors, f"{CLASSIFICATION}.weight", 2)
        check_weights(tensors, classifier, model_sizes(config, labels), "megatron")
        if fine_tuned == MULTIPLE_CHOICE and labels != 1:
            raise ValueError(f"{MULTIPLE_CHOICE!r} has {labels} outputs: one scores each choice")
    canonical = {row.hugging_face: tensors.pop(row.megatron) for row in table}
    if tensors:
        raise ValueError(f"the checkpoint has a key that no BERT of Megatron has, {min(tensors)!r}")
    return MegatronCheckpoint(config, head_activation, canonical, fine_tuned, len(ranks), notes)


def _shape(tensors: Mapping[str, LazyArray], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"the checkpoint lacks {name!r}")
    shape = tensors[name].shape
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"{name!r} has shape {shape}, not {dimensions} dimensions")
    return shape


def _attention_dim(ranks: Sequence[Mapping[str, LazyArray]]) -> int:
    """Return the width of all heads together, of which each rank has its part."""
    rows = _shape(ranks[0], "transformer.layers.0.attention.query_key_value.bias", 1)[0]
    if rows % 3:
        raise ValueError(f"the first layer's query_key_value has {rows} rows, not three times any")
    return rows // 3 * len(ranks)


def _join(
    ranks: Sequence[dict[str, LazyArray]], num_heads: int, attention: int, version: float
) -> dict[str, LazyArray]:
    """Join the tensor ranks to the whole model."""
    if num_heads % len(ranks):
        raise ValueError(
            f"{num_heads} attention heads are not split evenly over {len(ranks)} tensor ranks: "
            "give the right number with --num-heads (num_heads=)"
        )
    for rank in ranks:
        split_query_key_value(rank, num_heads // len(ranks), attention // num_heads, version)
        drop_tied_copy(rank)
    return merge_ranks(ranks)


def _sizes(tensors: Mapping[str, LazyArray], claimed_layers: int | float | None) -> dict[str, int]:
    """Return the backbone's arguments that tensors tell."""
    layers = {int(match[1]) for name in tensors if (match := LAYER.match(name))}
    if claimed_layers not in (None, len(layers)):
        raise ValueError(
            f"the checkpoint holds {len(layers)} layers but its arguments say {claimed_layers:g}: "
            "it is a part of a pipeline, or cut"
        )
    vocabulary, hidden = _shape(tensors, WORDS, 2)
    return {
        "vocabulary_size": vocabulary,
        "num_layers": len(layers),
        "hidden_dim": hidden,
        "intermediate_dim": _shape(tensors, "transformer.layers.0.mlp.dense_h_to_4h.bias", 1)[0],
        "max_sequence_length": _shape(tensors, "embedding.position_embeddings.weight", 2)[0],
        "num_segments": _shape(tensors, SEGMENTS, 2)[0],
    }


def _rename_fine_tuned_head(tensors: dict[str, LazyArray]) -> str | None:
    """Return which head of fine-tuning there is, and give it the name that the table has."""
    heads = [
        head
        for head in (CLASSIFICATION, MULTIPLE_CHOICE)
        if any(name.startswith(f"{head}.") for name in tensors)
    ]
    if len(heads) > 1:
        raise ValueError(f"the checkpoint has both {CLASSIFICATION!r} and {MULTIPLE_CHOICE!r}")
    for name in [name for name in tensors if name.startswith(f"{MULTIPLE_CHOICE}.")]:
        tensors[name.replace(MULTIPLE_CHOICE, CLASSIFICATION)] = tensors.pop(name)
    return heads[0] if heads else None


def _table(tensors: Mapping[str, LazyArray], num_layers: int, fine_tuned: str | None) -> list:
    """Return the rows of the table of weights that the checkpoint must have."""
    table = [row for row in weights(num_layers) if row.part in _PARTS]
    optional = {"binary_head", "classifier", "mlm_head" if fine_tuned else "pooler"}
    absent = optional - {row.part for row in table if row.megatron in tensors}
    return [row for row in table if row.part not in absent]
