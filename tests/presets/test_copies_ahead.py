"""Arrays of a weights file are copied before they are asked for, and given out once."""

import threading

import h5py
import keras
import numpy as np
import pytest
from models import small_backbone

from keras_megatron.checkpoints.assignable import assignable, copy_to_pages
from keras_megatron.checkpoints.mapped_files import BFLOAT16
from keras_megatron.presets import copies_ahead
from keras_megatron.presets.copies_ahead import CopiesAhead


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(copies_ahead, "SMALLEST", 1)
    small_backbone().save_weights(str(tmp_path / "model.weights.h5"))
    return tmp_path / "model.weights.h5"


def views(file):
    """Return a view of each array of a file."""
    found = []

    def see(name, item):
        if isinstance(item, h5py.Dataset) and item.size:
            found.append(np.memmap(file, item.dtype, "r", item.id.get_offset(), item.shape))

    with h5py.File(file) as opened:
        opened.visititems(see)
    return found


def made(copies):
    """Wait until all copies are made."""
    copies._executor.submit(lambda: None).result()
    return copies


def test_copies_are_equal_and_given_once(file):
    with CopiesAhead(file) as copies:
        made(copies)
        for view in views(file):
            copy = copies.take(view)
            assert np.array_equal(copy, view)
            assert copy.dtype == view.dtype
            assert copies.take(view) is None
    assert len(views(file)) > 20


def test_those_of_another_file_are_not_given(file, tmp_path):
    other = tmp_path / "other.weights.h5"
    other.write_bytes(file.read_bytes())
    with CopiesAhead(file) as copies:
        assert all(made(copies).take(view) is None for view in views(other))


def test_nothing_is_copied_after_it(file, monkeypatch):
    begun, go_on, count = threading.Event(), threading.Event(), []

    def slow(view):
        count.append(1)
        begun.set()
        go_on.wait(10)
        return copy_to_pages(view)

    monkeypatch.setattr(copies_ahead, "copy_to_pages", slow)
    with CopiesAhead(file) as copies:
        begun.wait(10)
        rest = views(file)[-1]
        assert copies.take(rest) is None  # not begun: who asks copies it
        threading.Timer(0.1, go_on.set).start()
    assert len(count) == 1
    assert not [thread for thread in threading.enumerate() if "copies-ahead" in thread.name]


@pytest.mark.parametrize("content", [b"", b"no HDF5", None])
def test_what_is_no_file_is_left_to_who_reads_it(tmp_path, content):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with CopiesAhead(tmp_path / "file") as copies:
        assert not copies._copies


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_a_variable_takes_an_array_and_leaves_it_alone(dtype):
    numbers = np.arange(-32, 32).reshape(4, 16)
    array = numbers.astype(BFLOAT16 if dtype == "bfloat16" else dtype)
    variable = keras.Variable(np.ones_like(numbers), dtype=dtype, trainable=False)
    variable.assign(assignable(array))
    array[:] = 1
    found = keras.ops.convert_to_numpy(keras.ops.cast(variable.value, "float32"))
    assert np.array_equal(found, numbers)
    variable.assign_add(keras.ops.ones((4, 16), dtype))
    assert (array == 1).all()
