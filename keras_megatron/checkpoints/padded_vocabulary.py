"""Tables with more rows of words than are stored, so that devices can have as many each."""

import contextlib
import functools
from collections.abc import Iterator, Mapping

import keras
import numpy as np

from keras_megatron.checkpoints.mapped_files import LazyArray
from keras_megatron.patching import patched

# The score of a row that stands for no piece: its probability is 0 in every floating-point type, so
# that answers and losses, and with them gradients, are those of the table without it.
UNLIKELY = -1e4
_FILLS = {"token_embedding/embeddings": 0.0, "mlm_head/bias": UNLIKELY}
_HUGGING_FACE_FILLS = {
    "bert.embeddings.word_embeddings.weight": 0.0,
    "cls.predictions.bias": UNLIKELY,
}


def check_rows(asked: int, stored: int) -> None:
    """Refuse a vocabulary that is smaller than the stored one.

    Raises:
        ValueError: as said, or it is no integer.
    """
    if not isinstance(asked, int | np.integer) or asked < stored:
        raise ValueError(
            f"vocabulary_size={asked!r} must be an integer of at least {stored}, the preset's own: "
            "rows can be added, not taken away"
        )


@contextlib.contextmanager
def padded_variables() -> Iterator[None]:
    """Have tables of words, and their biases, take arrays of fewer rows while this is active."""
    assign = keras.Variable.assign

    @functools.wraps(assign)
    def assign_padded(self, value):
        fill = next((fill for end, fill in _FILLS.items() if self.path.endswith(end)), None)
        if fill is None or tuple(value.shape) == tuple(self.shape):
            return assign(self, value)
        if not keras.backend.is_float_dtype(self.dtype):
            raise ValueError(
                f"{self.path} is quantized: load the preset with its own vocabulary_size"
            )
        return assign(self, _padded(np.asarray(value), self.shape[0], fill))

    with patched(keras.Variable, assign=assign_padded):
        yield


def with_rows(source: Mapping[str, LazyArray], rows: int) -> dict[str, LazyArray]:
    """Return weights by Hugging Face's names, those of words with so many rows, more or fewer."""
    changed = dict(source)
    for name, fill in _HUGGING_FACE_FILLS.items():
        if name in source:
            array = source[name]
            changed[name] = LazyArray(
                (rows, *array.shape[1:]),
                array.dtype,
                lambda read=array.read, fill=fill: _padded(read()[:rows], rows, fill),
            )
    return changed


def _padded(array: np.ndarray, rows: int, fill: float) -> np.ndarray:
    missing = rows - len(array)
    if not missing:
        return array
    return np.concatenate([array, np.full((missing, *array.shape[1:]), fill, array.dtype)])
