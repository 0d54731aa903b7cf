"""Converts a Megatron-LM checkpoint to a preset folder."""

import math
import os
import pathlib

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.checkpoints.assign import assign_weights
from keras_megatron.checkpoints.megatron import MegatronCheckpoint, read_megatron
from keras_megatron.checkpoints.sources import open_checkpoint
from keras_megatron.checkpoints.staging import reserve_space, staged_folder
from keras_megatron.checkpoints.weight_names import weights
from keras_megatron.layers.common import weights_follow
from keras_megatron.tasks.masked_lm import MegatronBertMaskedLM
from keras_megatron.tasks.masked_lm_preprocessor import MegatronBertMaskedLMPreprocessor
from keras_megatron.tasks.pretrainer import MegatronBertPretrainer
from keras_megatron.tasks.pretrainer_preprocessor import MegatronBertPretrainerPreprocessor
from keras_megatron.tokenizer import MegatronBertTokenizer

_BUNDLED = pathlib.Path(__file__).parent.parent / "presets" / "vocabularies"
# Rows of BERT's two vocabularies: padded to multiples of 128 times 1, 2, 4 or 8 GPUs.
_ROWS = {29056: "cased", 29184: "cased", 29696: "cased", 30592: "uncased", 30720: "uncased"}
_MOST_PADDING = 128 * 8
_BINARY_HEAD = "cls.seq_relationship.weight"
_HDF5_OVERHEAD = 8192  # bytes for each array


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

    Peak memory is the float32 model and a fraction; the checkpoint is mapped, not loaded. Nothing
    that it contains is executed.

    Args:
        source: Release zip, unpacked checkpoint folder or `.pt` file.
        output: Folder to make: whole, or not at all. It must not exist, or be empty.
        vocabulary: `"uncased"`, `"cased"` or a file with one piece a line. By default BERT's whose
            padded size is the number of the model's rows.
        num_heads: Attention heads. By default as the checkpoint's arguments say, else hidden / 64.
        layer_norm_epsilon: By default as the checkpoint's arguments say, else Megatron's 1e-5;
            1e-12 gives Hugging Face's numbers.
        mlp_activation: `"gelu"` or `"gelu_approximate"`. By default the latter for checkpoints
            trained with Megatron's fused GELU, which came after the released ones.
        progress: Print a line for each step.

    Returns:
        Keys of the checkpoint that the model has no place for.

    Raises:
        ValueError: in one line: the checkpoint is damaged, hostile or of another model; the
            vocabulary does not fit; or the disk is full.

    Example:
    ```python
    convert_checkpoint("megatron_bert_345m_v0.1_uncased.zip", "my_345m")
    masked_lm = MegatronBertMaskedLM.from_preset("my_345m")
    ```
    """
    report = print if progress else _silent
    with staged_folder(output) as folder:
        report(f"Reading {source}", flush=True)
        state = open_checkpoint(source, scratch=folder.parent)
        checkpoint = read_megatron(state, num_heads, layer_norm_epsilon, mlp_activation)
        del state
        tokenizer = _tokenizer(vocabulary, checkpoint.config["vocabulary_size"])
        reserve_space(folder, _weight_file_size(checkpoint))
        for note in checkpoint.notes:
            report(f"  {note}", flush=True)
        report(f"Filling {len(checkpoint.weights)} weights", flush=True)
        model, unused = _build(checkpoint, tokenizer)
        del checkpoint
        report(f"Writing {output}", flush=True)
        model.save_to_preset(str(folder))
    for name in unused:
        report(f"  not converted: {name}", flush=True)
    return unused


def _silent(*_, **__) -> None:
    pass


def _tokenizer(vocabulary: str | os.PathLike | None, rows: int) -> MegatronBertTokenizer:
    """Make the tokenizer, and check that its padded vocabulary has the model's rows."""
    if vocabulary is None:
        vocabulary = _ROWS.get(rows)
        if vocabulary is None:
            raise ValueError(
                f"the model has {rows} rows, which is neither BERT's cased nor its uncased "
                "vocabulary: give one with --vocabulary (vocabulary=)"
            )
    bundled = _BUNDLED / f"bert_{vocabulary}.txt"
    file = bundled if vocabulary in ("cased", "uncased") else pathlib.Path(vocabulary)
    if not file.is_file():
        raise ValueError(f"the vocabulary must be 'uncased', 'cased' or a file, not {vocabulary}")
    tokenizer = MegatronBertTokenizer(file)
    pieces = tokenizer.vocabulary_size()
    if not pieces <= rows < pieces + _MOST_PADDING:
        raise ValueError(
            f"the vocabulary {vocabulary} has {pieces} pieces, which padding does not take to the "
            f"model's {rows} rows: give the one that the model was trained with"
        )
    return tokenizer


def _weight_file_size(checkpoint: MegatronCheckpoint) -> int:
    """Return the most bytes that the weights take in HDF5, a few percent more than they do."""
    numbers = sum(math.prod(weight.shape) for weight in checkpoint.weights.values())
    return 4 * numbers + _HDF5_OVERHEAD * len(checkpoint.weights)


def _build(
    checkpoint: MegatronCheckpoint, tokenizer: MegatronBertTokenizer
) -> tuple[MegatronBertMaskedLM | MegatronBertPretrainer, list[str]]:
    """Make the model; also return the checkpoint's keys for which it has no place.

    A checkpoint with a binary head makes a pretrainer's preset. Every task takes from it what it
    has: a masked language model its head, a next-sentence predictor the other.
    """
    has_pooler = any(name.startswith("bert.pooler.") for name in checkpoint.weights)
    with weights_follow(has_pooler):
        backbone = MegatronBertBackbone(**checkpoint.config, dtype="float32")
    task, preparing = MegatronBertMaskedLM, MegatronBertMaskedLMPreprocessor
    if _BINARY_HEAD in checkpoint.weights:
        task, preparing = MegatronBertPretrainer, MegatronBertPretrainerPreprocessor
    preprocessor = preparing(tokenizer, sequence_length=backbone.max_sequence_length)
    model = task(backbone, preprocessor, head_activation=checkpoint.head_activation)
    unused, _ = assign_weights(model, checkpoint.weights, optional_parts=("pooler",))
    megatron = {row.hugging_face: row.megatron for row in weights(backbone.num_layers)}
    return model, checkpoint.unused + [megatron[name] for name in unused]
