"""Attributes that are other ones for a while."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def patched(owner, **attributes) -> Iterator[None]:
    """Give a class or module other attributes, and its own ones back on leaving."""
    own = {name: vars(owner)[name] for name in attributes if name in vars(owner)}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in attributes:
            if name in own:
                setattr(owner, name, own[name])
            else:
                delattr(owner, name)  # inherited, as before
