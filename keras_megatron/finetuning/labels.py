"""Labels as files have them: names of classes, and numbers."""

import math
import re
from collections.abc import Sequence
from typing import Any


def integer_label(value: Any) -> int:
    """Return an integer.

    Raises:
        ValueError: the value is none.
    """
    if isinstance(value, bool | float):
        raise ValueError(f"the label must be an integer, not {value!r}")
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the label must be an integer, not {value!r}") from error


def name_label(value: Any) -> str:
    """Return the name of a class.

    Raises:
        ValueError: the value is no name and no number of one.
    """
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"the label must be a name or an integer, not {value!r}")
    return str(value)


def order_label(value: Any) -> int:
    """Return whether a second text does not follow the first: 0 if it does, 1 if not.

    Raises:
        ValueError: the value is neither 0 nor 1.
    """
    label = integer_label(value)
    if label not in (0, 1):
        raise ValueError(f"the label must be 0 (it follows) or 1 (it does not), not {value!r}")
    return label


def number_label(value: Any) -> float:
    """Return a number to predict.

    Raises:
        ValueError: the value is not a finite number.
    """
    try:
        label = float(value)
    except (TypeError, ValueError):
        label = math.nan
    if not math.isfinite(label):
        raise ValueError(f"the label must be a number, not {value!r}")
    return label


def class_names(labels: Sequence) -> list[str]:
    """Return the classes among labels, or lists of labels: integers by size, else by name.

    Raises:
        ValueError: there is only one.
    """
    names = {name for label in labels for name in ([label] if isinstance(label, str) else label)}
    if len(names) < 2:
        raise ValueError(f"the training file has a single class, {min(names)!r}: give at least two")
    if all(re.fullmatch(r"-?[0-9]+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def class_indices(labels: Sequence, names: Sequence[str], places: Sequence[str]) -> list:
    """Return labels, or lists of labels, as indices in a list of class names.

    Args:
        labels: a name, or a list of names, a sample.
        names: of the classes.
        places: where each sample stands in its file, for the error.

    Raises:
        ValueError: a label is not among the names.
    """
    index = {name: place for place, name in enumerate(names)}

    def find(name: str, place: str) -> int:
        if name not in index:
            shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise ValueError(f"{place}: the label {name!r} is none of {shown}")
        return index[name]

    return [
        find(label, place) if isinstance(label, str) else [find(name, place) for name in label]
        for label, place in zip(labels, places, strict=True)
    ]
