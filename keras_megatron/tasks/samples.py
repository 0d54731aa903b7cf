"""Raw samples as they are given to `fit`, and the batches that are made of them."""

from collections.abc import Callable, Mapping, Sequence

import grain
import keras
import numpy as np

from keras_megatron.tokenization.strings import as_column


def by_position(values):
    """Return values as fit takes them, columns of other libraries as arrays.

    A Series counts by its own index: after a split or a sort, `series[0]` is not its first value.

    Args:
        values: a list, an array, a column of pandas, polars, Arrow or `datasets`, strings of
            TensorFlow, or a (nested) tuple of these; what else it may be stays as it is.
    """
    if isinstance(values, tuple):
        return tuple(by_position(part) for part in values)
    return as_column(values)


def is_raw(x) -> bool:
    """Say whether `x` is a list, an array, or a tuple of these: samples, not ids or a dataset."""
    columns = x if isinstance(x, tuple) else (x,)
    return bool(columns) and all(isinstance(column, list | np.ndarray) for column in columns)


def refuse_table(x) -> None:
    """Refuse a table of pandas, polars, Arrow or `datasets` where a column of it is wanted.

    Raises:
        ValueError: as said; it names the columns.
    """
    names = getattr(x, "column_names", getattr(x, "columns", None))
    if names is not None:
        names = [str(name) for name in names]
        raise ValueError(
            f"x is a table of {', '.join(names)}: give a column of it, as in x[{names[0]!r}], or a "
            "tuple of two for pairs"
            if names
            else "x is a table without columns: give a column of texts"
        )


def as_columns(x) -> tuple:
    """Return the columns of raw samples: what is no tuple is the only one."""
    return x if isinstance(x, tuple) else (x,)


def positive(name: str, value) -> int | None:
    """Return a number of samples or steps, which may be None.

    Raises:
        ValueError: as of `check_positive`.
    """
    if value is None:
        return None
    check_positive(name, value)
    return int(value)


def check_positive(name: str, value) -> None:
    """Refuse what is no integer of at least 1.

    Raises:
        ValueError: as said.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")


def first_samples(x, count: int):
    """Return the first of raw samples."""
    return tuple(part[:count] for part in x) if isinstance(x, tuple) else x[:count]


def ids_as_arrays(x, y=None, sample_weight=None) -> tuple | None:
    """Return ids, labels and weights as NumPy arrays, so that their rows can be put in any order.

    Args:
        x: a dict of arrays or tensors (rows, ...).
        y: an array or tensor, a list, a dict of these, or None.
        sample_weight: likewise.

    Returns:
        None if `x` is something else, or there are not as many rows of each: for packed rows.
    """
    if not isinstance(x, Mapping) or not all(hasattr(array, "shape") for array in x.values()):
        return None
    arrays = tuple(_as_arrays(part) for part in (x, y, sample_weight))
    shapes = [array.shape for array in keras.tree.flatten(arrays) if array is not None]
    if not all(shapes) or len({shape[0] for shape in shapes}) > 1:
        return None
    return arrays


def _as_arrays(values):
    if isinstance(values, Mapping):
        return {name: _as_arrays(part) for name, part in values.items()}
    return None if values is None else keras.ops.convert_to_numpy(values)


def split(data, validation_share: float) -> tuple:
    """Split columns of samples into (training, validation): the last ones validate.

    Args:
        data: a list, an array, None, or a (nested) tuple or dict of these, all of the same length.
        validation_share: share of the samples that validate.

    Raises:
        ValueError: one of the two would be empty.
    """
    if data is None:
        return None, None
    if isinstance(data, Mapping):
        parts = {name: split(part, validation_share) for name, part in data.items()}
        return tuple({name: part[side] for name, part in parts.items()} for side in (0, 1))
    if isinstance(data, tuple):
        training, validation = zip(*(split(part, validation_share) for part in data), strict=True)
        return training, validation
    at = int(len(data) * (1.0 - validation_share))
    if not 0 < at < len(data):
        raise ValueError(
            f"validation_split={validation_share} leaves no sample on one side of {len(data)}: "
            "give more"
        )
    return data[:at], data[at:]


def check_lengths(columns: Sequence, y=None, sample_weight=None) -> None:
    """Refuse columns of different lengths, and no samples at all.

    Raises:
        ValueError: as said.
    """
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise ValueError(f"the columns of x must be of one length, not {lengths}")
    if not lengths[0]:
        raise ValueError("there are no texts: give at least one")
    for name, values in (("labels (y)", y), ("sample weights", sample_weight)):
        if values is not None and len(values) != lengths[0]:
            raise ValueError(f"there are {lengths[0]} samples but {len(values)} {name}")


def batches(
    prepare: Callable,
    columns: Sequence,
    y=None,
    sample_weight=None,
    batch_size: int = 32,
    shuffle: bool = False,
    seed: int | None = None,
) -> grain.MapDataset:
    """Return one epoch of batches of raw samples; repeated, each is shuffled and drawn anew.

    What a batch holds is a function of the seed, the epoch and its place, so threads may prepare
    batches in any order.

    Args:
        prepare: function of (columns, y, sample_weight, rng) of one batch, where columns is a tuple
            of lists and rng a `np.random.Generator`; it makes what the model is trained on.
        columns: columns of samples.
        y: a label a sample, or None.
        sample_weight: a weight a sample, or None.
        batch_size: samples a batch.
        shuffle: whether to shuffle, anew each epoch.
        seed: of shuffling and rng; another one each time if None.
    """
    check_lengths(columns, y, sample_weight)
    given = (*columns, *(values for values in (y, sample_weight) if values is not None))
    transform = _Prepare(prepare, len(columns), y is not None, sample_weight is not None)
    rows = grain.MapDataset.source(_Rows(given))
    return _ordered(rows, shuffle, seed).batch(batch_size, batch_fn=list).random_map(transform)


def batches_of_arrays(arrays, batch_size: int, shuffle: bool = True) -> grain.MapDataset:
    """Return one epoch of batches of arrays, of ids for instance; repeated, each is shuffled anew.

    Args:
        arrays: a nested structure of arrays (rows, ...), or of None.
        batch_size: rows a batch.
        shuffle: whether to shuffle.
    """
    rows = len(keras.tree.flatten(arrays)[0])

    def take(places: list[int]):
        return keras.tree.map_structure(
            lambda array: None if array is None else array[places], arrays
        )

    return _ordered(grain.MapDataset.range(rows), shuffle, seed=None).batch(
        batch_size, batch_fn=take
    )


def from_epoch(batches: grain.MapDataset, arguments: dict) -> grain.MapDataset:
    """Leave out the epochs before `initial_epoch`, so that each has the order that is its own.

    Args:
        batches: of one epoch.
        arguments: of `fit`; `steps_per_epoch` is set where epochs are left out.
    """
    begun, steps = arguments.get("initial_epoch", 0), len(batches)
    if not begun:
        return batches
    arguments["steps_per_epoch"] = min(arguments.get("steps_per_epoch") or steps, steps)
    every = batches.repeat(max(begun + 1, arguments.get("epochs", 1)))
    return every[begun * arguments["steps_per_epoch"] :]


def _ordered(rows: grain.MapDataset, shuffle: bool, seed: int | None) -> grain.MapDataset:
    if seed is None:  # from Keras's, so that keras.utils.set_random_seed makes runs repeat
        seed = keras.random.randint((), 0, 2**31 - 1)
        seed = int(keras.ops.convert_to_numpy(seed))
    rows = rows.seed(seed)
    return rows.shuffle() if shuffle else rows


class _Rows:
    """A Grain source of the rows of several columns."""

    def __init__(self, columns: Sequence):
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, index: int) -> tuple:
        return tuple(column[index] for column in self._columns)


class _Prepare(grain.transforms.RandomMap):
    """Prepares a batch with the generator that Grain derives from epoch and place."""

    def __init__(self, prepare: Callable, columns: int, has_y: bool, has_weight: bool):
        self._prepare = prepare
        self._columns, self._has_y, self._has_weight = columns, has_y, has_weight

    def random_map(self, element: list[tuple], rng: np.random.Generator):
        columns = [list(column) for column in zip(*element, strict=True)]
        rest = columns[self._columns :]
        y = rest.pop(0) if self._has_y else None
        sample_weight = np.asarray(rest.pop(0), "float32") if self._has_weight else None
        return self._prepare(tuple(columns[: self._columns]), y, sample_weight, rng)
