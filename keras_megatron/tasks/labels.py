"""Class labels as users hold them (integers, names, probabilities), and what is made of them."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

_MOST_SHOWN = 10  # class names in an error


def check_class_names(names: Sequence[str] | None) -> list[str] | None:
    """Return class names as a list.

    Raises:
        ValueError: there are none, one is no str, or one is there twice.
    """
    if names is None:
        return None
    names = list(names) if not isinstance(names, str) else [names]
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"class_names must be strings that are not empty, not {name!r}")
    if not names:
        raise ValueError("class_names is empty: give a name for each class, or None")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"class_names must differ, but {twice!r} is there more than once")
    return names


def check_class_count(preprocessor, num_classes: int) -> None:
    """Refuse class names that are not as many as the classes.

    Raises:
        ValueError: as said, or `num_classes` is not a positive integer.
    """
    if not isinstance(num_classes, int | np.integer) or num_classes < 1:
        raise ValueError(
            f"num_classes must be a positive integer, not {num_classes!r}: say how many classes "
            "the new head has"
        )
    names = getattr(preprocessor, "class_names", None)
    if names is not None and len(names) != num_classes:
        raise ValueError(
            f"the preprocessor has {len(names)} class_names but num_classes is {num_classes}: give "
            "as many"
        )


def label_array(labels, class_names: Sequence[str] | None = None) -> np.ndarray:
    """Turn labels into an array.

    Args:
        labels: a list or an array of integers, of class names, of numbers (regression), or of rows
            with a number a class; or a single label.
        class_names: names of the classes in their order, or None.

    Returns:
        int32 for integers and names, float32 for other numbers and for rows.

    Raises:
        ValueError: a label is none of these, or not one of the names.
    """
    if isinstance(labels, str | bytes):
        return np.int32(_index_of(labels, class_names))
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "SUO":
        labels = labels.tolist()
    if isinstance(labels, list | tuple) and any(isinstance(y, str | bytes) for y in labels):
        return np.array([_index_of(y, class_names, i) for i, y in enumerate(labels)], "int32")
    try:
        array = np.asarray(labels)
    except ValueError:
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        raise ValueError("labels (y) must be integers, names, or rows of the same length")
    return array.astype("int32" if array.ndim < 2 and array.dtype.kind != "f" else "float32")


def _index_of(label, class_names: Sequence[str] | None, index: int | None = None) -> int:
    where = "the label" if index is None else f"label {index}"
    if class_names is None:
        raise ValueError(
            f"{where} is {label!r}: give integers, or a preprocessor that has class_names"
        )
    name = label.decode("utf-8", "replace") if isinstance(label, bytes) else label
    if name not in class_names:
        shown = ", ".join(class_names[:_MOST_SHOWN])
        more = ", ..." if len(class_names) > _MOST_SHOWN else ""
        raise ValueError(f"{where} is {label!r}, which is none of the class names {shown}{more}")
    return class_names.index(name)


def label_tensor(labels, class_names: Sequence[str] | None = None):
    """Do what `label_array` does in a TensorFlow graph: numbers pass, names become int32.

    Raises:
        ValueError: labels are names, but there are no class names.
    """
    import tensorflow as tf

    labels = tf.convert_to_tensor(labels)
    if labels.dtype != tf.string:
        return labels
    if class_names is None:
        raise ValueError("labels are names, but the preprocessor has no class_names: give it some")
    matches = tf.equal(labels[..., tf.newaxis], list(class_names))
    known = tf.debugging.Assert(
        tf.reduce_all(tf.reduce_any(matches, axis=-1)),
        ["a label is none of the class names:", labels],
    )
    with tf.control_dependencies([known]):
        return tf.argmax(matches, axis=-1, output_type=tf.int32)


def check_class_labels(labels, num_classes: int) -> None:
    """Refuse labels that are no classes.

    Args:
        labels: a list or an array (samples,) or (samples, 1) of integers or whole numbers.
        num_classes: how many classes there are.

    Raises:
        ValueError: a label is not a whole number from 0 to `num_classes - 1`; it is named by its
            place.
    """
    labels = label_array(labels)
    if labels.shape[1:] not in ((), (1,)):
        raise ValueError(f"labels (y) must be a class a sample, but are of shape {labels.shape}")
    labels = labels.reshape(len(labels))
    bad = ~((labels >= 0) & (labels < num_classes) & (labels == np.floor(labels)))
    if bad.any():
        index = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"labels must be integers from 0 to {num_classes - 1}, but label {index} is "
            f"{labels[index]}"
        )


def check_rows(labels: np.ndarray, num_classes: int) -> None:
    """Refuse rows of labels that have no number from 0 to 1 for each class.

    Args:
        labels: (samples, classes).
        num_classes: how many classes there are.

    Raises:
        ValueError: as said.
    """
    if labels.ndim != 2 or labels.shape[1] != num_classes:
        raise ValueError(
            f"labels that are rows must be of shape (samples, {num_classes}), not {labels.shape}"
        )
    bad = ~((labels >= 0) & (labels <= 1)).all(axis=1)
    if bad.any():
        index = int(np.flatnonzero(bad)[0])
        raise ValueError(f"labels in rows must be from 0 to 1, but row {index} is {labels[index]}")


@keras.saving.register_keras_serializable(package="keras_megatron")
class ClassCrossEntropy(keras.losses.Loss):
    """Cross entropy of labels that are classes (batch,), or probabilities (batch, classes).

    Args:
        from_logits: bool. Whether predictions are logits instead of probabilities.
        reduction: str. Of `keras.losses.Loss`.
        name: str. Of the loss.
    """

    def __init__(
        self,
        from_logits: bool = True,
        reduction="sum_over_batch_size",
        name: str = "class_cross_entropy",
        **kwargs,
    ):
        super().__init__(name=name, reduction=reduction, **kwargs)
        self.from_logits = from_logits

    def call(self, y_true, y_pred):
        """Return the loss of each sample (batch,)."""
        if _are_rows(y_true, y_pred):
            return ops.categorical_crossentropy(y_true, y_pred, from_logits=self.from_logits)
        classes = ops.reshape(ops.cast(y_true, "int32"), ops.shape(y_pred)[:-1])
        return ops.sparse_categorical_crossentropy(classes, y_pred, from_logits=self.from_logits)

    def get_config(self) -> dict:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "from_logits": self.from_logits}


@keras.saving.register_keras_serializable(package="keras_megatron")
class ClassAccuracy(keras.metrics.MeanMetricWrapper):
    """Share of samples whose most probable class is the labelled one.

    Labels are those of `ClassCrossEntropy`; in one fit the training data may have probabilities and
    the validation data classes.
    """

    def __init__(self, name: str = "accuracy", dtype=None):
        super().__init__(fn=_is_right, name=name, dtype=dtype)
        self._direction = "up"

    def get_config(self) -> dict:
        """Return the arguments of the constructor."""
        return {"name": self.name, "dtype": self.dtype}


def _is_right(y_true, y_pred):
    if _are_rows(y_true, y_pred):
        classes = ops.argmax(y_true, axis=-1)
    else:
        classes = ops.reshape(y_true, ops.shape(y_pred)[:-1])
    predicted = ops.argmax(y_pred, axis=-1)
    return ops.cast(ops.equal(ops.cast(classes, predicted.dtype), predicted), "float32")


def _are_rows(y_true, y_pred) -> bool:
    return len(y_true.shape) == len(y_pred.shape) and y_true.shape[-1] == y_pred.shape[-1]
