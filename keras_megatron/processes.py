"""Which of the processes of one run this is, where there are several."""

import contextlib
from collections.abc import Callable, Iterator

_process = 0
_barrier: Callable[[], None] | None = None


def is_first() -> bool:
    """Say whether this is the process that writes files."""
    return _process == 0


def wait_for_all() -> None:
    """Wait until every process has come here."""
    if _barrier is not None:
        _barrier()


@contextlib.contextmanager
def one_of_several(process: int, barrier: Callable[[], None]) -> Iterator[None]:
    """Make known which process this is.

    Args:
        process: its number, from 0.
        barrier: waits until every process has called it.
    """
    global _process, _barrier
    before = _process, _barrier
    _process, _barrier = process, barrier
    try:
        yield
    finally:
        _process, _barrier = before
