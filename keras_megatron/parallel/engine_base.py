"""What an engine is, which makes Keras honour a distribution on a backend."""

import contextlib
from collections.abc import Iterator

import keras


class Engine:
    """What a backend needs beside Keras's own; nothing where Keras has all.

    Attributes:
        more_devices: how to get more devices, for an error.
    """

    more_devices = "give other numbers"

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Give Keras what it lacks: devices, meshes and layouts of this backend."""
        yield

    @contextlib.contextmanager
    def active(self, distribution) -> Iterator[None]:
        """Have variables and batches laid out as a distribution says."""
        yield

    def local_shape(self, variable: keras.Variable) -> tuple[int, ...]:
        """Return the shape of what a device holds of a variable, which may be all of it."""
        return tuple(variable.shape)
