"""Weights files are mapped into memory where that is right, and nothing stays in the mapping."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import h5py
import keras
import numpy as np
import pytest
from keras.src.saving import saving_lib
from models import small_backbone
from test_loading import largest_difference, small_preset

from keras_megatron import MegatronBertMaskedLM
from keras_megatron.presets import copies_ahead, mapped_weights

READ = saving_lib.H5IOStore.__getitem__
FILE = "model.weights.h5"


@pytest.fixture
def mapped(monkeypatch):
    """The shapes of the arrays that are mapped, of whatever size."""
    shapes, view = [], mapped_weights._view

    def watched(store, key):
        array = view(store, key)
        shapes.append(None if array is None else array.shape)
        return array

    monkeypatch.setattr(mapped_weights, "_view", watched)
    for module in (mapped_weights, copies_ahead):
        monkeypatch.setattr(module, "SMALLEST", 1)
    return shapes


def load(folder, **arguments):
    return MegatronBertMaskedLM.from_preset(str(folder), preprocessor=None, **arguments)


def rewritten(file, **arguments):
    """Write each array of a file anew."""
    with h5py.File(file, "r+") as opened:
        arrays = []
        opened.visititems(lambda name, item: arrays.append((name, item)))
        for name, item in arrays:
            if isinstance(item, h5py.Dataset):
                array = item[...]
                del opened[name]
                given = {key: value(array) for key, value in arguments.items() if callable(value)}
                opened.create_dataset(name, **{"data": array, **arguments, **given})


def test_a_model_does_not_depend_on_its_file(tmp_path, mapped):
    model = small_preset(tmp_path)
    loaded = load(tmp_path)
    assert None not in mapped
    assert len(mapped) >= len(model.backbone.weights)
    (tmp_path / FILE).write_bytes(bytes((tmp_path / FILE).stat().st_size))  # the same file
    assert largest_difference(loaded, model) == 0
    loaded.backbone.token_embedding.embeddings.assign_add(
        keras.ops.ones(loaded.backbone.token_embedding.embeddings.shape)
    )
    assert not any((tmp_path / FILE).read_bytes())


def test_compressed_arrays_are_read(tmp_path, mapped):
    model = small_preset(tmp_path)
    rewritten(tmp_path / FILE, chunks=True, compression="gzip")
    assert largest_difference(load(tmp_path), model) == 0
    assert mapped[-len(model.backbone.weights) :] == [None] * len(model.backbone.weights)


def test_arrays_of_another_byte_order_are_not_mapped(tmp_path, mapped):
    model = small_preset(tmp_path)
    rewritten(tmp_path / FILE, data=lambda array: array.astype(">f4"))
    refused = keras.config.backend() == "torch"  # by Keras
    with pytest.raises((TypeError, ValueError)) if refused else contextlib.nullcontext():
        assert largest_difference(load(tmp_path), model) == 0
    assert None in mapped


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_mapped(tmp_path, mapped, dtype):
    model = MegatronBertMaskedLM(small_backbone(dtype=dtype), preprocessor=None)
    model.save_to_preset(str(tmp_path))
    assert largest_difference(load(tmp_path, dtype=dtype), model) == 0
    assert largest_difference(load(tmp_path, dtype="float32"), model) == 0
    assert None not in mapped


def test_sharded_weights_are_mapped(tmp_path, mapped):
    model = MegatronBertMaskedLM(small_backbone(), preprocessor=None)
    model.save_to_preset(str(tmp_path), max_shard_size=3e-5)
    assert len(list(tmp_path.glob("model*.weights.h5"))) > 1
    assert largest_difference(load(tmp_path), model) == 0
    assert None not in mapped


def test_only_large_arrays_are_mapped(tmp_path, monkeypatch):
    maps = []
    monkeypatch.setattr(np, "memmap", lambda *args: maps.append(args))  # what it returns is nothing
    model = small_preset(tmp_path)
    assert largest_difference(load(tmp_path), model) == 0
    assert not maps


def test_threads_load_one_after_the_other(tmp_path):
    small_preset(tmp_path)
    assign = keras.Variable.assign
    rows = small_backbone().vocabulary_size + 8
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: load(tmp_path, vocabulary_size=rows), range(4)))
    assert keras.Variable.assign is assign
    assert saving_lib.H5IOStore.__getitem__ is READ
    assert {model.backbone.vocabulary_size for model in models} == {rows}
