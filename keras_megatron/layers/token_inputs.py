"""Checks of ids, with errors that name the value and the remedy."""

from collections.abc import Mapping

import numpy as np

INPUTS = ("token_ids", "segment_ids", "padding_mask")
ENCODER_INPUTS = ("encoder_hidden_states", "encoder_padding_mask")
# What may be given besides, or instead.
OPTIONAL_INPUTS = (
    "position_ids",
    "token_embeddings",
    "attention_mask",
    "document_ids",
    "cls_positions",
)


def check_input_names(inputs, cross_attention: bool) -> None:
    """Refuse a backbone's inputs that are missing, unknown, or given in two ways.

    Args:
        inputs: what the backbone is called on.
        cross_attention: whether it attends to an encoder.

    Raises:
        ValueError: as said, or they are no dict.
    """
    if not isinstance(inputs, Mapping):
        raise ValueError(f"inputs must be a dict with {', '.join(INPUTS)}, not {type(inputs)}")
    known = {*INPUTS, *OPTIONAL_INPUTS, *(ENCODER_INPUTS if cross_attention else ())}
    if unknown := sorted(set(inputs) - known):
        raise ValueError(f"unknown input {unknown[0]!r}: known are {', '.join(sorted(known))}")
    if ("token_ids" in inputs) == ("token_embeddings" in inputs):
        raise ValueError("give either token_ids or token_embeddings")
    if "cls_positions" in inputs and "document_ids" not in inputs:
        raise ValueError("cls_positions are those of packed rows: give document_ids too")
    optional = set(inputs).intersection(OPTIONAL_INPUTS)
    needed = set() if optional else {"segment_ids", "padding_mask"}
    if cross_attention:
        needed |= set(ENCODER_INPUTS if not optional else ENCODER_INPUTS[:1])
    if missing := sorted(needed - set(inputs)):
        raise ValueError(f"the input {missing[0]!r} is missing")


def check_token_inputs(
    inputs: Mapping, vocabulary_size: int, num_segments: int, max_sequence_length: int
) -> None:
    """Refuse ids that have no embedding: a backend would clip them, or return NaN, in silence.

    Only numpy arrays are looked at; a tensor may live on a device, and looking would wait for it.

    Args:
        inputs: a model's inputs by name; what is no dict, or lacks a name, is not checked.
        vocabulary_size: rows of the token table.
        num_segments: rows of the segment table.
        max_sequence_length: rows of the position table.

    Raises:
        ValueError: an id is negative or too large, or the sequence is too long.
    """
    if not isinstance(inputs, Mapping):
        return
    token_ids = inputs.get("token_ids")
    length = token_ids.shape[-1] if isinstance(token_ids, np.ndarray) else None
    packed = "document_ids" in inputs  # positions are those in a document
    if length is not None and length > max_sequence_length and not packed:
        raise ValueError(
            f"token_ids have {length} tokens but the model has {max_sequence_length} positions: "
            "truncate them (the preprocessors do)"
        )
    limits = {
        "token_ids": vocabulary_size,
        "segment_ids": num_segments,
        "position_ids": max_sequence_length,
        "mask_positions": token_ids.size if length is not None and packed else length,
        "cls_positions": None if length is None else token_ids.size,
    }
    for name, limit in limits.items():
        ids = inputs.get(name)
        if limit is None or not isinstance(ids, np.ndarray) or ids.size == 0:
            continue
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= limit:
            raise ValueError(
                f"{name} must be from 0 to {limit - 1}, but there is {low if low < 0 else high}"
            )
