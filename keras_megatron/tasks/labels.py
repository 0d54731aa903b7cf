"""Class labels as users hold them (integers, names, probabilities), and what is made of them."""

from collections.abc import Callable, Sequence

import numpy as np

_MOST_SHOWN = 10  # class names in an error
_IGNORED = -100  # by Hugging Face's losses, not by these


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
            f"num_classes must be a positive integer, not {num_classes!r}: where a preset "
            "has no head for the task, give num_classes and a new one is made"
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
        int32 for integers and names, float32 for other numbers, for rows and for what int32 does
        not hold.

    Raises:
        ValueError: a label is none of these, or not one of the names.
    """
    if isinstance(labels, str | bytes):
        return np.int32(class_numbers([labels], class_names, lambda _: "the label is")[0])
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "SUO":
        labels = labels.tolist()
    if isinstance(labels, list | tuple) and any(isinstance(y, str | bytes) for y in labels):
        return np.array(class_numbers(labels, class_names), "int32")
    array = as_array(labels)
    if array.dtype.kind not in "biuf":
        raise ValueError("labels (y) must be integers, names, or rows of the same length")
    return array.astype("int32" if array.ndim < 2 and fits_int32(array) else "float32")


def as_array(labels) -> np.ndarray:
    """Return labels as an array, which is of no numbers if they are rows of several lengths."""
    try:
        return np.asarray(labels)
    except ValueError:
        return np.array(None)


def fits_int32(array: np.ndarray) -> bool:
    """Say whether an array is of integers that int32 holds: others would become other ones."""
    if array.dtype.kind == "f":
        return False
    limits = np.iinfo("int32")
    return not array.size or limits.min <= int(array.min()) <= int(array.max()) <= limits.max


def class_numbers(
    labels: Sequence,
    class_names: Sequence[str] | None,
    place: Callable[[int], str] = "label {} is".format,
) -> list[int]:
    """Turn names of classes into the classes' numbers.

    Args:
        labels: names, str or UTF-8 bytes.
        class_names: names of all classes in their order, or None.
        place: returns what an error says before the label of this index.

    Raises:
        ValueError: a label is not one of the names, or there are none.
    """
    for index, label in enumerate(labels if class_names is None else ()):
        if isinstance(label, str | bytes):
            raise ValueError(
                f"{place(index)} {label!r}: give integers, or a preprocessor that has class_names"
            )
    numbers = {name: number for number, name in enumerate(class_names or ())}
    found = []
    for index, label in enumerate(labels):
        name = label.decode("utf-8", "replace") if isinstance(label, bytes) else label
        if not isinstance(name, str) or name not in numbers:
            shown = ", ".join(list(numbers)[:_MOST_SHOWN])
            more = ", ..." if len(numbers) > _MOST_SHOWN else ""
            raise ValueError(
                f"{place(index)} {label!r}, which is none of the class names {shown}{more}"
            )
        found.append(numbers[name])
    return found


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
    """Refuse labels that are not a class a sample.

    Args:
        labels: a list or an array (samples,) or (samples, 1) of whole numbers.
        num_classes: how many classes there are.

    Raises:
        ValueError: as said; the label is named by its place.
    """
    labels = label_array(labels)
    if labels.shape[1:] not in ((), (1,)):
        raise ValueError(f"labels (y) must be a class a sample, but are of shape {labels.shape}")
    check_range(labels.reshape(len(labels)), num_classes)


def check_range(labels: np.ndarray, count: int | None) -> None:
    """Refuse labels that are not whole numbers from 0 to `count - 1` (from 0 on if it is None).

    Raises:
        ValueError: as said; the label is named by its place.
    """
    good = (labels >= 0) & (labels == np.floor(labels))
    if count is not None:
        good &= labels < count
    if good.all():
        return
    place = tuple(int(index) for index in np.argwhere(~good)[0])
    label = labels[place]
    limits = "of at least 0" if count is None else f"from 0 to {count - 1}"
    hint = ": what has no label is left out by a sample_weight of 0" if label == _IGNORED else ""
    raise ValueError(
        f"labels must be integers {limits}, but label {place[0] if len(place) == 1 else place} is "
        f"{label}{hint}"
    )


def check_shape(labels: np.ndarray, shape: tuple) -> None:
    """Refuse labels of another shape; an axis of one may follow.

    Raises:
        ValueError: as said.
    """
    if labels.shape not in (tuple(shape), (*shape, 1)):
        raise ValueError(f"labels (y) must be of shape {tuple(shape)}, not {labels.shape}")


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
