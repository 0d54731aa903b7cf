"""Texts and ids in the forms that users hold them, as Python lists."""

import re
from collections.abc import Sequence

import keras
import numpy as np

Texts = str | bytes | Sequence[str | bytes] | np.ndarray  # or a TensorFlow string tensor

_SURROGATE = re.compile("[\ud800-\udfff]")


def as_column(values):
    """Return a column of another library as a list or an array; what is none stays as it is.

    Args:
        values: a column of pandas, polars, Arrow or `datasets`, or strings of TensorFlow.
    """
    if isinstance(values, list | tuple | str | bytes | np.ndarray):
        return values
    if hasattr(values, "to_pylist") and not hasattr(values, "column_names"):  # Arrow's, no table
        return values.to_pylist()
    if isinstance(values, Sequence):  # of `datasets`, which reads a value when it is asked for it
        return list(values)
    if len(getattr(values, "shape", ())) != 1:
        return values
    if hasattr(values, "to_numpy"):
        return values.to_numpy()
    if getattr(values.dtype, "name", "") == "string" and hasattr(values, "numpy"):  # TensorFlow
        return [text.decode("utf-8", "replace") for text in values.numpy()]
    return values


def as_strings(texts: Texts, name: str) -> tuple[list[str], bool]:
    """Turn one text or a batch of them into Python strings.

    Bytes are decoded as UTF-8, with U+FFFD for what is not UTF-8. A lone surrogate, which no UTF-8
    can hold, becomes U+FFFD too: one character for one, so that character offsets still hold.

    Args:
        texts: str or bytes, a list, tuple, one-dimensional array or column of them, or a TensorFlow
            string tensor outside of a graph.
        name: what to call `texts` in an error.

    Returns:
        The strings, and whether `texts` was a batch.

    Raises:
        ValueError: something in `texts` is not a string.
    """
    texts = as_column(texts)
    if hasattr(texts, "numpy"):  # a tensor
        texts = texts.numpy()
    if isinstance(texts, np.ndarray):
        texts = texts.tolist()  # nested where it has two dimensions, a scalar where it has none
    if isinstance(texts, list | tuple):
        return [_as_string(text, name, index) for index, text in enumerate(texts)], True
    return [_as_string(texts, name)], False


def as_partners(texts: Texts, count: int, batched: bool) -> list[str]:
    """Turn the second texts of pairs into Python strings.

    Raises:
        ValueError: something in `texts` is not a string, or they are not as many as the first.
    """
    partners, both_batched = as_strings(texts, "second")
    if both_batched != batched:
        raise ValueError(f"second must be {'a batch' if batched else 'one text'}, as first")
    if len(partners) != count:
        raise ValueError(f"second must be as many texts as first: {len(partners)} against {count}")
    return partners


def as_id_rows(ids) -> tuple[list[list[int]], bool]:
    """Turn the ids of one text, or of a batch of texts, into lists.

    Args:
        ids: a list, an array or a tensor of ids, or a batch of them, ragged or not.

    Returns:
        The rows, and whether `ids` was a batch.
    """
    ids = _as_list(ids)
    if ids and isinstance(ids[0], list):
        return ids, True
    return [ids], False


def _as_list(ids):
    if isinstance(ids, int):
        return ids
    if isinstance(ids, list | tuple):
        return [_as_list(item) for item in ids]
    if hasattr(ids, "to_list"):  # a ragged tensor
        return ids.to_list()
    if keras.ops.is_tensor(ids):  # it may be on a GPU
        ids = keras.ops.convert_to_numpy(ids)
    return np.asarray(ids).tolist()


def _as_string(text, name: str, index: int | None = None) -> str:
    if isinstance(text, bytes):
        return text.decode("utf-8", "replace")
    if isinstance(text, str):
        return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
    where = name if index is None else f"{name}[{index}]"
    expected = "a string or a flat list of strings" if index is None else "a string"
    raise ValueError(f"{where} must be {expected}, not {type(text).__name__}")
