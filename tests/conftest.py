"""Each backend is tested in a process of its own: KERAS_BACKEND says which one this is."""

import json
import os

import keras
import numpy as np
import pytest

BACKENDS = ("jax", "torch", "tensorflow")
BACKEND = os.environ.get("KERAS_BACKEND")


def pytest_configure(config):
    """Stop at once if the backend that runs is not the one that was asked for."""
    if BACKEND not in BACKENDS:
        pytest.exit(f"set KERAS_BACKEND to one of {BACKENDS}; it is {BACKEND!r}", returncode=2)
    if keras.backend.backend() != BACKEND:
        pytest.exit(f"Keras runs {keras.backend.backend()}, not {BACKEND}", returncode=2)


def pytest_collection_modifyitems(config, items):
    """Run backend-independent tests once, full-size ones only when asked for by `-m`."""
    dropped = [
        item
        for item in items
        if (item.get_closest_marker("backend_independent") and BACKEND != "torch")
        or (item.get_closest_marker("full_size") and "full_size" not in config.option.markexpr)
    ]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]


def pytest_report_header():
    return f"keras {keras.__version__} on {keras.backend.backend()}"


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same random state."""
    keras.utils.set_random_seed(0)


@pytest.fixture
def parity():
    """Check that numbers agree with a reference's, and note by how much if PARITY_LOG is set.

    Tests that use it have the marker `parity`; tools/parity_table.py makes a table of the notes.
    """

    def check(what: str, actual, expected, tolerance: float) -> None:
        difference = float(np.abs(np.asarray(actual, "f8") - np.asarray(expected, "f8")).max())
        if log := os.environ.get("PARITY_LOG"):
            row = {"what": what, "backend": BACKEND, "difference": difference, "limit": tolerance}
            with open(log, "a") as file:
                file.write(json.dumps(row) + "\n")
        assert difference <= tolerance, what

    return check
