"""Converts a Megatron-LM checkpoint to a preset folder."""

import math
import os
import pathlib
from collections.abc import Callable

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.checkpoints.assign import assign_weights
from keras_megatron.checkpoints.megatron import (
    CLASSIFICATION,
    MULTIPLE_CHOICE,
    MegatronCheckpoint,
    read_megatron,
)
from keras_megatron.checkpoints.sources import open_checkpoint
from keras_megatron.checkpoints.staging import hdf5_size, reserve_space, staged_folder
from keras_megatron.checkpoints.vocabulary_rows import choose_tokenizer, cut_padding
from keras_megatron.checkpoints.weight_names import weights
from keras_megatron.layers.common import start_at_random, weights_follow
from keras_megatron.tasks.masked_lm import MegatronBertMaskedLM
from keras_megatron.tasks.multiple_choice import MegatronBertMultipleChoice
from keras_megatron.tasks.pretrainer import MegatronBertPretrainer
from keras_megatron.tasks.task import MegatronBertTask
from keras_megatron.tasks.text_classifier import MegatronBertTextClassifier
from keras_megatron.tokenizer import MegatronBertTokenizer

_BINARY_HEAD = "cls.seq_relationship.weight"
_CLASSIFIER_BIAS = "classifier.bias"


def convert_checkpoint(
    source: str | os.PathLike,
    output: str | os.PathLike,
    vocabulary: str | os.PathLike | None = None,
    num_heads: int | None = None,
    layer_norm_epsilon: float | None = None,
    mlp_activation: str | None = None,
    progress: bool = True,
) -> list[str]:
    """Convert a Megatron-LM checkpoint to a preset that `from_preset` loads.

    The preset is of the task whose head the checkpoint has: a pretrainer or a masked language
    model, or after fine-tuning a text classifier (`classification_head`) or a multiple-choice model
    (`multichoice_head`). Peak memory is the float32 model and a fraction, however many shards there
    are: they are mapped, not loaded. Nothing that they contain is executed.

    Args:
        source: Release zip, unpacked checkpoint folder (`mp_rank_*`, of any number of tensor and
            pipeline ranks, or `torch_dist`), or a file of either.
        output: Folder to make: whole, or not at all. It must not exist, or be empty.
        vocabulary: `"uncased"`, `"cased"` or a file with one piece a line. By default BERT's whose
            padded size is the number of the model's rows. Rows beyond the next multiple of 128,
            which tensor parallelism pads with, are cut.
        num_heads: Attention heads. By default as the checkpoint's arguments say, else hidden / 64.
        layer_norm_epsilon: By default as the checkpoint's arguments say, else Megatron's 1e-5;
            1e-12 gives Hugging Face's numbers.
        mlp_activation: `"gelu"` or `"gelu_approximate"`. By default the latter for checkpoints
            trained with Megatron's fused GELU, which came after the released ones.
        progress: Print a line for each step.

    Returns:
        Keys of the checkpoint that the model has no place for.

    Raises:
        ValueError: in one line: the checkpoint is damaged, hostile, of another model or without
            one of its shards; the vocabulary does not fit; or the disk is full.

    Example:
    ```python
    convert_checkpoint("megatron_bert_345m_v0.1_uncased.zip", "my_345m")
    masked_lm = MegatronBertMaskedLM.from_preset("my_345m")
    ```
    """
    report = print if progress else _silent
    with staged_folder(output) as folder:
        model, unused = read_model(
            source,
            folder.parent,
            report,
            vocabulary=vocabulary,
            num_heads=num_heads,
            layer_norm_epsilon=layer_norm_epsilon,
            mlp_activation=mlp_activation,
            preset=folder,
        )
        report(f"Writing {output}", flush=True)
        model.save_to_preset(str(folder))
    for name in unused:
        report(f"  not converted: {name}", flush=True)
    return unused


def read_model(
    source: str | os.PathLike,
    scratch: pathlib.Path,
    report: Callable[..., None],
    vocabulary: str | os.PathLike | None = None,
    num_heads: int | None = None,
    layer_norm_epsilon: float | None = None,
    mlp_activation: str | None = None,
    preset: pathlib.Path | None = None,
) -> tuple[MegatronBertTask, list[str]]:
    """Make the model that a Megatron-LM checkpoint holds.

    Args:
        source: As of `convert_checkpoint`, as those that are not described here.
        scratch: Folder for what a compressed zip holds; remove it when done.
        report: Called with a line for each step.
        vocabulary: Name or file.
        num_heads: Attention heads.
        layer_norm_epsilon: Epsilon of every LayerNorm.
        mlp_activation: Activation of the feed-forward blocks.
        preset: Folder that gets the model as a preset, if one does: there must be room for it,
            which is seen before a backend is started.

    Returns:
        The task, and keys of the checkpoint for which it has no place.

    Raises:
        ValueError: as of `convert_checkpoint`.
    """
    report(f"Reading {source}", flush=True)
    shards = open_checkpoint(source, scratch)
    checkpoint = read_megatron(shards, num_heads, layer_norm_epsilon, mlp_activation)
    del shards
    rows = checkpoint.config["vocabulary_size"]
    tokenizer = choose_tokenizer(vocabulary, rows, checkpoint.tensor_size)
    checkpoint = cut_padding(checkpoint, tokenizer.vocabulary_size())
    if preset is not None:
        sizes = [4 * math.prod(array.shape) for array in checkpoint.weights.values()]
        reserve_space(preset, hdf5_size(sizes))
    for note in checkpoint.notes:
        report(f"  {note}", flush=True)
    report(f"Filling {len(checkpoint.weights)} weights", flush=True)
    return _build(checkpoint, tokenizer)


def _silent(*_, **__) -> None:
    pass


def _build(
    checkpoint: MegatronCheckpoint, tokenizer: MegatronBertTokenizer
) -> tuple[MegatronBertTask, list[str]]:
    """Make the model; also return the checkpoint's keys for which it has no place."""
    has_pooler = any(name.startswith("bert.pooler.") for name in checkpoint.weights)
    with weights_follow(True):
        backbone = MegatronBertBackbone(**checkpoint.config, dtype="float32")
    if not has_pooler:
        start_at_random(backbone.get_layer("pooled_dense"))
    task, arguments = task_of(checkpoint)
    preprocessor = task.preprocessor_cls(tokenizer, sequence_length=backbone.max_sequence_length)
    model = task(backbone, preprocessor=preprocessor, **arguments)
    unused, _ = assign_weights(model, checkpoint.weights, optional_parts=("pooler",))
    megatron = {row.hugging_face: row.megatron for row in weights(backbone.num_layers)}
    return model, [megatron[name] for name in unused]


def task_of(checkpoint: MegatronCheckpoint) -> tuple[type[MegatronBertTask], dict]:
    """Return the task whose head the checkpoint has, and its arguments beside the backbone.

    A checkpoint with a binary head makes a pretrainer's preset. Every task takes from it what it
    has: a masked language model its head, a next-sentence predictor the other.
    """
    if checkpoint.fine_tuned == CLASSIFICATION:
        (num_classes,) = checkpoint.weights[_CLASSIFIER_BIAS].shape
        return MegatronBertTextClassifier, {"num_classes": num_classes}
    if checkpoint.fine_tuned == MULTIPLE_CHOICE:
        return MegatronBertMultipleChoice, {}
    pretrained = _BINARY_HEAD in checkpoint.weights
    task = MegatronBertPretrainer if pretrained else MegatronBertMaskedLM
    return task, {"head_activation": checkpoint.head_activation}
