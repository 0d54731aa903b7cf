"""Warnings that name a line of the user's."""

import sys
import warnings

_NOT_THE_USER = ("keras_megatron", "keras_hub", "keras")


def warn_user(message: str) -> None:
    """Warn at the line outside of this package and Keras that led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _NOT_THE_USER:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
