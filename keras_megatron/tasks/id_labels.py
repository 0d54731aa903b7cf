"""Labels beside ids, which Keras would take as they are."""

from collections.abc import Mapping

import keras
import numpy as np

from keras_megatron.tasks.labels import as_array, fits_int32


def labels_that_count(labels, sample_weight=None, limits=None):
    """Return labels beside ids, with 0 for those of weight 0.

    What has no weight counts for nothing in a loss, but some backends refuse it or make NaN of it
    if it is out of range. A metric may count it: give `limits` to keep what is within.

    Args:
        labels: a list or an array of numbers, or a dict of these. What else there is, such as
            tensors on a device, is returned as it is.
        sample_weight: None, or weights of the labels' shape, or of its first axes; a dict of these
            if `labels` is one.
        limits: the least and the greatest label that is kept whatever its weight is; a dict of
            these if `labels` is one. None: all of weight 0 become 0.

    Raises:
        ValueError: labels are not numbers.
    """
    if isinstance(labels, Mapping):
        weights = sample_weight if isinstance(sample_weight, Mapping) else {}
        limits = limits or {}
        return {
            name: labels_that_count(y, weights.get(name), limits.get(name))
            for name, y in labels.items()
        }
    if not isinstance(labels, list | np.ndarray):
        return labels
    array = np.array(as_array(labels))  # a copy: some become 0
    if array.dtype.kind not in "biuf":
        raise ValueError("labels (y) of ids must be numbers, or rows of as many numbers")
    if isinstance(labels, list):
        array = array.astype("int32" if fits_int32(array) else "float32")
    array = without_overflow(array)
    if sample_weight is not None:
        weight = keras.ops.convert_to_numpy(sample_weight)
        if weight.shape == array.shape[: weight.ndim]:
            array[_is_replaced(array, weight, limits)] = 0
    return array


def _is_replaced(labels: np.ndarray, weight: np.ndarray, limits: tuple | None) -> np.ndarray:
    weightless = (weight == 0).reshape(weight.shape + (1,) * (labels.ndim - weight.ndim))
    if limits is None:
        return np.broadcast_to(weightless, labels.shape)
    least, greatest = limits
    usable = np.isfinite(labels) & (labels >= least) & (labels <= greatest)
    return weightless & ~usable


def without_overflow(labels):
    """Return integers that int32 does not hold as float32: backends would make others of them.

    Args:
        labels: a list or an array, or what else is returned as it is.
    """
    if not isinstance(labels, list | np.ndarray):
        return labels
    array = as_array(labels)
    return labels if array.dtype.kind not in "iu" or fits_int32(array) else array.astype("float32")
