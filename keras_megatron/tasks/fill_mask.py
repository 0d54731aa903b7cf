"""Filling the [MASK]s that a user wrote: from texts to ranked tokens."""

import numpy as np

from keras_megatron.tasks.samples import by_position


def fill_mask(masked_lm, texts: list[str], top_k: int, batch_size: int) -> list:
    """See `MegatronBertMaskedLM.fill_mask`; here `texts` is always a list."""
    if masked_lm.preprocessor is None:
        raise ValueError("fill_mask needs a preprocessor, but this model was made with none")
    tokenizer = masked_lm.preprocessor.tokenizer
    texts = by_position(texts)
    if not isinstance(texts, list | tuple | np.ndarray) or getattr(texts, "ndim", 1) == 0:
        raise ValueError(f"texts must be a str or a list of str, not {type(texts).__name__}")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {index} must be a str, not {type(text).__name__}: {text!r}")
    limits = {"top_k": (top_k, tokenizer.vocabulary_size()), "batch_size": (batch_size, 2**20)}
    for name, (value, most) in limits.items():
        if not isinstance(value, int | np.integer) or not 1 <= value <= most:
            raise ValueError(f"{name} must be an integer from 1 to {most}, not {value!r}")
    answers = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        inputs, counts = _prepare(masked_lm, batch, first_index=start)
        logits = masked_lm.logits(inputs, batch_size)
        # Rows beyond the tokenizer's vocabulary are padding of the table: never a prediction.
        logits = logits[..., : tokenizer.vocabulary_size()]
        answers += [
            _answers(text, logits[row, : counts[row]], tokenizer, top_k)
            for row, text in enumerate(batch)
        ]
    return answers


def _prepare(masked_lm, texts: list[str], first_index: int) -> tuple[dict, np.ndarray]:
    """Encode texts; lengths are rounded up, so that a compiled backend sees few shapes.

    Returns:
        The model's inputs, and the masks each text has.
    """
    tokenizer = masked_lm.preprocessor.tokenizer
    limit = masked_lm.backbone.max_sequence_length
    whole = tokenizer.encode(texts)["token_ids"]  # not truncated
    is_mask = whole == tokenizer.mask_token_id
    for row, text in enumerate(texts):
        if not is_mask[row].any():
            raise ValueError(f"text {first_index + row} has no [MASK] to fill: {text[:60]!r}")
        last = int(np.flatnonzero(is_mask[row])[-1])
        if last >= limit - 1:
            raise ValueError(
                f"text {first_index + row} has a [MASK] at token {last}, beyond the {limit} tokens "
                "that the model reads: shorten it"
            )

    length = min(_round_up(whole.shape[1], 32), limit)
    inputs = tokenizer.encode(texts, sequence_length=length)
    is_mask = inputs["token_ids"] == tokenizer.mask_token_id
    counts = is_mask.sum(axis=1)
    positions = np.zeros((len(texts), _power_of_two(counts.max())), "int32")
    for row in range(len(texts)):
        positions[row, : counts[row]] = np.flatnonzero(is_mask[row])
    inputs["mask_positions"] = positions
    return inputs, counts


def _answers(text: str, logits: np.ndarray, tokenizer, top_k: int) -> list:
    """Rank the vocabulary for each mask of one text, from logits (masks, vocabulary)."""
    top = np.argpartition(-logits, top_k - 1, axis=-1)[:, :top_k]
    order = np.argsort(-np.take_along_axis(logits, top, axis=-1), axis=-1, kind="stable")
    top = np.take_along_axis(top, order, axis=-1)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=-1, keepdims=True)
    pieces = text.split(tokenizer.mask_token)
    answers = []
    for mask, ids in enumerate(top):
        before = tokenizer.mask_token.join(pieces[: mask + 1])
        after = tokenizer.mask_token.join(pieces[mask + 1 :])
        answers.append(
            [
                {
                    "score": float(probabilities[mask, token]),
                    "token": int(token),
                    "token_str": tokenizer.id_to_token(int(token)),
                    "sequence": _fill(before, tokenizer.id_to_token(int(token)), after),
                }
                for token in ids
            ]
        )
    return answers


def _fill(before: str, token: str, after: str) -> str:
    """Put a token in a mask's place; a "##" piece joins the word before it."""
    if token.startswith("##"):
        return before.rstrip() + token.removeprefix("##") + after
    return before + token + after


def _round_up(value: int, multiple: int) -> int:
    return -(-int(value) // multiple) * multiple


def _power_of_two(value: int) -> int:
    return 1 << (int(value) - 1).bit_length()
