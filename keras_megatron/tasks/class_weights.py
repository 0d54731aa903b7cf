"""Weights of classes, as `fit` takes them."""

import math
import numbers
from collections.abc import Mapping

import keras
import numpy as np

from keras_megatron.tasks.labels import class_numbers


def class_weights(task, weights: Mapping) -> dict[int, float]:
    """Return weights of classes by their numbers: of those that are not given 1.

    Args:
        task: the model, whose preprocessor may have `class_names`.
        weights: by number or name.

    Raises:
        ValueError: a key is no class, a weight no number of at least 0, or the task has no class a
            sample.
    """
    if not task.has_classes():
        raise ValueError(
            "class_weight is for labels that are one class a sample: give sample_weight instead, a "
            "weight for each label"
        )
    if not isinstance(weights, Mapping):
        raise ValueError(f"class_weight must be a dict of a weight a class, not {weights!r}")
    names = getattr(getattr(task, "preprocessor", None), "class_names", None)
    count = getattr(task, "num_classes", None)
    found = {}
    for key, weight in weights.items():
        if isinstance(key, str):
            (number,) = class_numbers([key], names, lambda _: "class_weight has the key")
        elif not isinstance(key, int | np.integer) or key < 0 or (count and key >= count):
            limits = f"from 0 to {count - 1}" if count else "of at least 0"
            raise ValueError(
                f"keys of class_weight must be integers {limits}, or names, not {key!r}"
            )
        else:
            number = int(key)
        if not isinstance(weight, numbers.Real) or not 0 <= weight < math.inf:
            raise ValueError(
                f"class_weight[{key!r}] must be a number of at least 0, not {weight!r}"
            )
        found[number] = float(weight)
    return dict.fromkeys(range(count or max([1, *found]) + 1), 1.0) | found


def with_class_weights(batch: tuple, weights: Mapping[int, float]) -> tuple:
    """Return a batch whose samples have the weights of their classes.

    Args:
        batch: `(x, y)`, where y is a class a sample or (samples, classes).
        weights: by the number of a class; of the others 1.

    Raises:
        ValueError: the batch has weights already, or no labels.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    if sample_weight is not None or y is None:
        has = "no labels to weight" if y is None else "sample_weight beside it: give one of the two"
        raise ValueError(f"there is class_weight, but this data has {has}")
    y = np.asarray(y)
    classes = y.argmax(-1) if y.ndim > 1 and y.shape[-1] > 1 else y.reshape(-1)
    return x, y, np.array([weights.get(int(number), 1.0) for number in classes], "float32")
