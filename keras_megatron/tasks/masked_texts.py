"""Texts as they are given to `fit`, and the masked batches that are made of them."""

import grain
import numpy as np


def is_texts(x) -> bool:
    """Say whether `x` is a list or array, or a pair of them: texts, not ids or a dataset."""
    columns = x if isinstance(x, tuple) else (x,)
    return 1 <= len(columns) <= 2 and all(
        isinstance(column, list | np.ndarray) for column in columns
    )


def split_texts(x, validation_share: float) -> tuple:
    """Split texts, or a pair of lists of them, into (training, validation): the last ones.

    Raises:
        ValueError: one of the two would be empty.
    """
    if isinstance(x, tuple):
        training, validation = zip(*(split_texts(y, validation_share) for y in x), strict=True)
        return training, validation
    at = int(len(x) * (1.0 - validation_share))
    if not 0 < at < len(x):
        raise ValueError(
            f"validation_split={validation_share} leaves no text on one side of {len(x)}: give more"
        )
    return x[:at], x[at:]


def masked_dataset(preprocessor, x, batch_size: int, shuffle: bool) -> grain.MapDataset:
    """See `MegatronBertMaskedLMPreprocessor.dataset`."""
    columns = x if isinstance(x, tuple) else (x,)
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise ValueError(f"a pair needs as many first as second texts, not {lengths}")
    if not lengths[0]:
        raise ValueError("there are no texts: give at least one")
    seed = (
        np.random.default_rng().integers(2**31) if preprocessor.seed is None else preprocessor.seed
    )
    dataset = grain.MapDataset.source(list(zip(*columns, strict=True))).seed(int(seed))
    if shuffle:
        dataset = dataset.shuffle()
    return dataset.batch(batch_size, batch_fn=list).random_map(_Preprocess(preprocessor))


class _Preprocess(grain.transforms.RandomMap):
    """Preprocesses a batch with the generator that Grain derives from epoch and place."""

    def __init__(self, preprocessor):
        self._preprocessor = preprocessor

    def random_map(self, element: list[tuple], rng: np.random.Generator):
        return self._preprocessor.preprocess(*map(list, zip(*element, strict=True)), rng=rng)
