"""Parts of generation: what of a row is given, what is made, and where it ends."""

import numpy as np
from keras import ops


def check_prompt_mask(padding_mask) -> None:
    """Refuse prompts that do not begin their rows, or are empty. Tensors are not looked at.

    Args:
        padding_mask: (batch, length), 1 for the tokens of a prompt.

    Raises:
        ValueError: as said.
    """
    if not isinstance(padding_mask, np.ndarray):
        return
    mask = padding_mask != 0
    if not mask[..., 0].all() or (mask[..., 1:] & ~mask[..., :-1]).any():
        raise ValueError(
            "padding_mask must be 1 for a prompt, which begins its row and has a token at least, "
            "and 0 after it: put padding behind prompts"
        )


def is_stop(token_ids, prompt_mask, stop_token_ids):
    """Say of each token whether it was made and ends its row: bool (batch, length)."""
    stops = ops.zeros_like(token_ids, dtype="bool")
    for stop in stop_token_ids or ():
        stops = ops.logical_or(stops, token_ids == stop)
    return ops.logical_and(stops, ops.logical_not(ops.cast(prompt_mask, "bool")))


def until_stop(token_ids, prompt_mask, stop_token_ids):
    """Say of each token whether it is part of the answer, which ends with the first stop."""
    stops = ops.cast(is_stop(token_ids, prompt_mask, stop_token_ids), "int32")
    return ops.equal(ops.cumsum(stops, axis=-1) - stops, 0)


def with_certain_tokens(logits, token_ids, prompt_mask, index, stop_token_ids):
    """Make certain what the next token is where a longer prompt has it, or the row has ended.

    A beam search sums up scores: those of tokens that are not the answer's must not count.

    Args:
        logits: (batch, vocabulary), of the token at `index`.
        token_ids: int (batch, length).
        prompt_mask: (batch, length), 1 for the prompts.
        index: int, or a scalar tensor.
        stop_token_ids: ids that end a row, or None.
    """

    def at(array):
        return ops.slice(array, [0, index], [ops.shape(array)[0], 1])

    token, is_certain = at(token_ids), ops.cast(at(prompt_mask), "bool")
    if stop_token_ids:
        before = ops.arange(ops.shape(token_ids)[1], dtype="int32") < index
        stops = ops.logical_and(is_stop(token_ids, prompt_mask, stop_token_ids), before)
        has_ended = ops.any(stops, axis=-1, keepdims=True)
        token = ops.where(has_ended, stop_token_ids[0], token)
        is_certain = ops.logical_or(is_certain, has_ended)
    certain = ops.equal(ops.arange(logits.shape[-1], dtype="int32"), token)
    certain = ops.cast(ops.where(certain, 0.0, -1e4), logits.dtype)
    return ops.where(is_certain, certain, logits)
