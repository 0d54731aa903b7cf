"""Checks of ids, with errors that name the value and the remedy."""

from collections.abc import Mapping

import numpy as np


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
    if length is not None and length > max_sequence_length:
        raise ValueError(
            f"token_ids have {length} tokens but the model has {max_sequence_length} positions: "
            "truncate them (the preprocessors do)"
        )
    limits = {
        "token_ids": vocabulary_size,
        "segment_ids": num_segments,
        "position_ids": max_sequence_length,
        "mask_positions": length,
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
