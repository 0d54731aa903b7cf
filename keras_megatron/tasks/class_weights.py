"""Weights of classes, as `fit` takes them."""

from collections.abc import Mapping

import numpy as np

from keras_megatron.tasks.labels import class_numbers


def class_weights(task, weights: Mapping) -> dict[int, float]:
    """Return weights of classes by their numbers.

    Args:
        task: the model, whose preprocessor may have `class_names`.
        weights: by number or name.

    Raises:
        ValueError: a key is no class, or the task has no class a sample.
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
    numbers = {}
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
        numbers[number] = weight
    return numbers
