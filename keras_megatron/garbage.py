"""Python's search for garbage, left out where there is none."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Keep Python from looking for garbage: a model's many objects are none, nor a backend's.

    Keras asks for it whenever a layer gives up a weight, which takes half a second each; what it
    gives up is freed without. Those who ask see only what was made meanwhile.
    """
    was_enabled, freezes = gc.isenabled(), not gc.get_freeze_count()
    gc.disable()
    if freezes:
        gc.freeze()
    try:
        yield
    finally:
        if freezes:
            gc.unfreeze()
        if was_enabled:
            gc.enable()
