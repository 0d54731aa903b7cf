"""Splits pickles into operations, with Python's own tables of how each is encoded."""

import pickletools
from collections.abc import Collection, Iterator

from keras_megatron.checkpoints.mapped_files import MappedFile

# A real checkpoint of 48 layers with its optimizer has about 50,000 operations.
MOST_OPERATIONS = 3_000_000

_OPERATIONS = {operation.code.encode("latin-1"): operation for operation in pickletools.opcodes}
NAMES = tuple(operation.name for operation in pickletools.opcodes)


def operations(file: MappedFile, supported: Collection[str]) -> Iterator[tuple[str, object]]:
    """Yield each operation's name and its argument, until the pickle ends.

    Args:
        file: At the pickle's beginning; behind it at the end.
        supported: Names of operations. Of others not even the argument is read.

    Raises:
        ValueError: an operation is none of these, there are too many, or the pickle is truncated.
    """
    for _ in range(MOST_OPERATIONS):
        code = file.read(1)
        operation = _OPERATIONS.get(code)
        if operation is None:
            raise ValueError(
                "the pickle is truncated" if not code else f"it has no pickle: {code!r}"
            )
        if operation.name not in supported:
            raise ValueError(
                f"refused: its pickle uses {operation.name}, which no checkpoint needs"
            )
        if operation.name == "GLOBAL":
            yield operation.name, _global_name(file)
        else:
            yield operation.name, operation.arg.reader(file) if operation.arg else None
        if operation.name == "STOP":
            return
    raise ValueError(f"the pickle has more than {MOST_OPERATIONS} operations")


def _global_name(file: MappedFile) -> str:
    """Read two lines as they are; `pickletools` would take backslashes for escapes, and warn."""
    lines = [file.readline() for _ in range(2)]
    if not all(line.endswith(b"\n") for line in lines):
        raise ValueError("the pickle is truncated")
    return " ".join(line[:-1].decode() for line in lines)
