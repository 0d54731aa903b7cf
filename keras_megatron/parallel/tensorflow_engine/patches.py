"""Changes that are undone on leaving."""

import contextlib
import os
from collections.abc import Iterator

_MISSING = object()


@contextlib.contextmanager
def replaced(owner, name: str, value) -> Iterator[None]:
    """Have an attribute of a class or module be another, while this is active."""
    before = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Have a variable of the process's environment be another, while this is active."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
