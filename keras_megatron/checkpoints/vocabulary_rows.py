"""The vocabulary of a Megatron-LM checkpoint: which it is, and its rows without padding."""

import dataclasses
import os
import pathlib

from keras_megatron.checkpoints.megatron import MegatronCheckpoint
from keras_megatron.checkpoints.padded_vocabulary import with_rows
from keras_megatron.padding import ROWS_MULTIPLE, padded_vocabulary_size
from keras_megatron.tokenizer import MegatronBertTokenizer

_BUNDLED = pathlib.Path(__file__).parent.parent / "presets" / "vocabularies"
# Rows of BERT's two vocabularies: padded to multiples of 128 times 1, 2, 4 or 8 GPUs.
_ROWS = {29056: "cased", 29184: "cased", 29696: "cased", 30592: "uncased", 30720: "uncased"}
_MOST_RANKS = 8


def choose_tokenizer(
    vocabulary: str | os.PathLike | None, rows: int, tensor_size: int = 1
) -> MegatronBertTokenizer:
    """Make the tokenizer, and check that padding takes its vocabulary to the model's rows.

    Args:
        vocabulary: `"uncased"`, `"cased"`, a file, or None for BERT's of this size.
        rows: Of the model's table of words.
        tensor_size: Ranks that the table was split over. It may have been padded for up to eight
            also if there is one: ranks can be merged without cutting it.

    Raises:
        ValueError: there is no such vocabulary, or it does not fit.
    """
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
    if not pieces <= rows < pieces + ROWS_MULTIPLE * max(_MOST_RANKS, tensor_size):
        raise ValueError(
            f"the vocabulary {vocabulary} has {pieces} pieces, which padding does not take to the "
            f"model's {rows} rows: give the one that the model was trained with"
        )
    return tokenizer


def cut_padding(checkpoint: MegatronCheckpoint, pieces: int) -> MegatronCheckpoint:
    """Cut the rows that one GPU would not have padded the vocabulary with.

    Megatron-LM pads to a multiple of 128 times the number of tensor ranks, so that all of them have
    as many rows; without ranks to split over, a multiple of 128 is enough.

    Args:
        checkpoint: The checkpoint.
        pieces: Of the tokenizer.
    """
    rows, needed = checkpoint.config["vocabulary_size"], padded_vocabulary_size(pieces, 1)
    if rows <= needed:
        return checkpoint
    weights = with_rows(checkpoint.weights, needed)
    note = f"{rows - needed} of {rows} rows of words cut: padding for tensor parallelism"
    config = {**checkpoint.config, "vocabulary_size": needed}
    notes = [*checkpoint.notes, note]
    return dataclasses.replace(checkpoint, config=config, weights=weights, notes=notes)
