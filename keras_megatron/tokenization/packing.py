"""Token ids into the padded arrays that a BERT model takes."""

from itertools import chain

import numpy as np

from keras_megatron.tokenization.vocabulary import Vocabulary

Rows = list[list[int]]


def check_sequence_length(sequence_length: int | None, pair: bool) -> None:
    """Refuse a length that has no room for [CLS] and one [SEP] a text.

    Raises:
        ValueError: `sequence_length` is neither None nor an integer that is large enough.
    """
    minimum = 3 if pair else 2
    if sequence_length is not None and (
        not isinstance(sequence_length, int | np.integer) or sequence_length < minimum
    ):
        raise ValueError(
            f"sequence_length must be None or an integer of at least {minimum}, "
            f"for the special tokens{' of a pair' if pair else ''}, not {sequence_length!r}"
        )


def pack(
    first: Rows,
    second: Rows | None,
    vocabulary: Vocabulary,
    sequence_length: int | None,
    dtype: str,
    pad_to_longest: bool = False,
) -> dict[str, np.ndarray]:
    """Add [CLS] and [SEP], truncate, pad.

    Args:
        first: ids of each text.
        second: ids of each text's partner, or None.
        vocabulary: has the ids to add.
        sequence_length: columns of the arrays; None takes as many as the longest row needs.
        dtype: of the arrays.
        pad_to_longest: whether to truncate only, and take as many columns as the longest row needs.

    Returns:
        `token_ids`, `segment_ids` and `padding_mask`, each (len(first), columns).
    """
    start, end, padding = (vocabulary.ids[token] for token in ("[CLS]", "[SEP]", "[PAD]"))
    if sequence_length is not None:
        first, second = _truncate(first, second, sequence_length)
    rows = [[start, *ids, end] for ids in first]
    first_lengths = _lengths(rows)
    if second is not None:
        rows = [[*row, *ids, end] for row, ids in zip(rows, second, strict=True)]
    lengths = _lengths(rows)
    if sequence_length is None or pad_to_longest:
        sequence_length = lengths.max(initial=0)

    columns = np.arange(sequence_length)
    is_token = columns < lengths[:, None]
    is_second = is_token & (columns >= first_lengths[:, None])
    token_ids = np.full(is_token.shape, padding, dtype)
    token_ids[is_token] = np.fromiter(chain.from_iterable(rows), dtype, lengths.sum())
    return {
        "token_ids": token_ids,
        "segment_ids": is_second.astype(dtype),
        "padding_mask": is_token.astype(dtype),
    }


def _truncate(first: Rows, second: Rows | None, sequence_length: int) -> tuple[Rows, Rows | None]:
    if second is None:
        return [ids[: sequence_length - 2] for ids in first], None
    kept = [
        _longest_first(len(a), len(b), sequence_length - 3)
        for a, b in zip(first, second, strict=True)
    ]
    return (
        [ids[:length] for ids, (length, _) in zip(first, kept, strict=True)],
        [ids[:length] for ids, (_, length) in zip(second, kept, strict=True)],
    )


def _longest_first(first: int, second: int, budget: int) -> tuple[int, int]:
    """Say how many ids of a pair to keep, as the `tokenizers` library does.

    Each text may have half of the budget and what the other leaves of its half. The odd id goes to
    the longer text, to the second where both are as long.
    """
    share = (budget + (first > second)) // 2
    kept_first = min(first, max(share, budget - second))
    return kept_first, min(second, budget - kept_first)


def _lengths(rows: Rows) -> np.ndarray:
    return np.fromiter(map(len, rows), "int64", len(rows))
