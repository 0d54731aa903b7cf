"""What is fuzzed: a kind of file has a real one, changes of it, and the reader that users meet.

Nothing here imports torch: `fuzzing.seeds` writes the real files before.
"""

import pathlib
import random

from keras_megatron.checkpoints.mapped_files import LazyArray, MappedFile


def mapped(content):
    return MappedFile(memoryview(content))


def read_arrays(content):
    """Read every array in what a reader returns, one after another."""
    pending, seen = [content], set()
    while pending:
        value = pending.pop()
        if isinstance(value, LazyArray):
            array = value.read()
            assert (array.shape, array.dtype) == (value.shape, value.dtype)
            array.tobytes()
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(value.values() if isinstance(value, dict) else value)


class Kind:
    """One kind of file.

    Args:
        seeds: Folder of the real files.
        scratch: Folder to write to.
    """

    def __init__(self, seeds: pathlib.Path, scratch: pathlib.Path):
        self.seeds, self.scratch = seeds, scratch / type(self).__name__
        self.scratch.mkdir()
        self.prepare()

    def prepare(self):
        """Read the real files."""

    def mutated(self, rng: random.Random) -> bytes:
        """Return a changed file."""
        raise NotImplementedError

    def place(self, content: bytes) -> int:
        """Write it where the reader looks for it; return the size of all that is read."""
        self.content = content
        return len(content)

    def read(self) -> None:
        """Read it, all of it."""
        raise NotImplementedError

    def clean(self) -> None:
        """Remove what the reader unpacked."""
