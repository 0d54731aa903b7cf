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
    _check_attention_mask(inputs.get("attention_mask"))
    optional = set(inputs).intersection(OPTIONAL_INPUTS)
    needed = set() if optional else {"segment_ids", "padding_mask"}
    if cross_attention:
        needed |= set(ENCODER_INPUTS if not optional else ENCODER_INPUTS[:1])
    if missing := sorted(needed - set(inputs)):
        raise ValueError(f"the input {missing[0]!r} is missing")


def _check_attention_mask(mask) -> None:
    """Refuse a mask of padding, which would be taken for one of heads, and one that is added."""
    if mask is None:
        return
    if len(mask.shape) != 3:
        raise ValueError(
            f"attention_mask must be (batch, query, key), not of shape {tuple(mask.shape)}: where "
            "there is padding says padding_mask, (batch, key)"
        )
    if not isinstance(mask, np.ndarray) and "float" in str(mask.dtype):
        raise ValueError("attention_mask must be bool or integers, 1 where a query sees a key")


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
        "padding_mask": 2,
        "attention_mask": 2,
    }
    for name, limit in limits.items():
        ids = inputs.get(name)
        if limit is None or not isinstance(ids, np.ndarray) or ids.size == 0:
            continue
        if ids.dtype.kind == "f" and (ids % 1).any():
            raise ValueError(f"{name} must be integers, but there is {ids[ids % 1 != 0][0]}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= limit:
            raise ValueError(
                f"{name} must be from 0 to {limit - 1}, but there is {low if low < 0 else high}"
            )
    if packed and "position_ids" not in inputs:
        _check_documents(inputs["document_ids"], inputs.get("padding_mask"), max_sequence_length)


def _check_documents(document_ids, padding_mask, max_sequence_length: int) -> None:
    """Refuse documents in packed rows that are longer than the model has positions."""
    if not isinstance(document_ids, np.ndarray) or document_ids.shape[-1] <= max_sequence_length:
        return
    places = np.arange(document_ids.shape[-1])
    begins = np.ones(document_ids.shape, bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    positions = places - np.maximum.accumulate(np.where(begins, places, 0), axis=-1)
    if isinstance(padding_mask, np.ndarray):
        positions = np.where(padding_mask != 0, positions, 0)
    if (longest := int(positions.max()) + 1) > max_sequence_length:
        raise ValueError(
            f"a document has {longest} tokens but the model has {max_sequence_length} positions: "
            "truncate it"
        )
