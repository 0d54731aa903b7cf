"""Whether processes were given the same data: if not, they would train on a mixture in silence."""

import zlib
from collections.abc import Iterable

import numpy as np


def checksum(arrays: Iterable[tuple[str, np.ndarray]]) -> int:
    """Return a number that differs, all but certainly, for other arrays.

    Args:
        arrays: what each is (shape and type), and its bytes, uint8 (bytes,).
    """
    result = 0
    for described, contents in arrays:
        result = zlib.crc32(described.encode(), result)
        result = zlib.crc32(contents, result)
    return result


def other_batch(process: int) -> ValueError:
    """Return the error of a process whose batch is not that of the others."""
    return ValueError(
        f"process {process} was given another batch than others: give each process the same data, "
        "all of it, in the same order"
    )
