"""Our reader and writer of safetensors, against the library of that name."""

import json
import random

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoint_helpers import one_line_error

from keras_megatron.checkpoints.mapped_files import LazyArray, MappedFile
from keras_megatron.checkpoints.safetensors_files import load_safetensors, save_safetensors

pytestmark = pytest.mark.backend_independent


def tensors():
    return {
        "float32": torch.randn(3, 4),
        "float16": torch.randn(5).half(),
        "bfloat16": torch.randn(2, 2).bfloat16(),
        "int64": torch.arange(3),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
    }


def as_torch(array):
    if array.dtype == ml_dtypes.bfloat16:
        return torch.tensor(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.tensor(array.copy())


def load(content):
    return load_safetensors(MappedFile(memoryview(content)))


def test_reads_what_the_library_writes():
    expected = tensors()
    read = load(safetensors.torch.save(expected, metadata={"format": "pt"}))
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(as_torch(read[name].read()), tensor), name


def test_the_library_reads_what_we_write(tmp_path):
    expected = tensors()
    lazy = {}
    for name, tensor in expected.items():
        is_bfloat16 = tensor.dtype == torch.bfloat16
        array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if is_bfloat16 else None
        array = tensor.numpy() if array is None else array
        lazy[name] = LazyArray(array.shape, array.dtype, lambda array=array: array)
    save_safetensors(tmp_path / "file.safetensors", lazy)
    read = safetensors.torch.load_file(tmp_path / "file.safetensors")
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(read[name], tensor), name


def test_transposed_arrays_are_written_in_order(tmp_path):
    array = np.arange(6, dtype="f4").reshape(2, 3).T
    save_safetensors(tmp_path / "file", {"a": LazyArray((3, 2), array.dtype, lambda: array)})
    np.testing.assert_array_equal(safetensors.torch.load_file(tmp_path / "file")["a"], array)


def test_truncation_at_every_place():
    content = safetensors.torch.save({"a": torch.randn(3, 2), "b": torch.randn(2)})
    for size in range(len(content)):
        with one_line_error():
            load(content[:size])


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [1 << 70], "data_offsets": [0, 8]},
        {"dtype": "F4", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": [], "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "more": 1},
        {"dtype": "F32", "shape": [0, 1 << 70], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [10**1000] * 10_000, "data_offsets": [0, 4]},
        [],
        None,
    ],
)
def test_a_header_that_lies_is_refused(entry):
    header = json.dumps({"a": entry}).encode()
    with one_line_error():
        load(len(header).to_bytes(8, "little") + header + bytes(8))


def test_tensors_do_not_share_bytes():
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    with one_line_error("the same bytes"):
        load(len(header).to_bytes(8, "little") + header + bytes(8))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_a_header_in_another_encoding_is_refused(encoding):
    header = '{"é": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'.encode(encoding)
    with one_line_error("damaged"):
        load(len(header).to_bytes(8, "little") + header + bytes(1))


@pytest.mark.parametrize(
    "header", [b"[" * 100_000, b'{"a":' * 100_000, b'{"' + b"a" * 999 + b'":1}']
)
def test_a_header_of_odd_depth_or_length_is_refused(header):
    with one_line_error():
        load(len(header).to_bytes(8, "little") + header)


def test_a_header_is_not_longer_than_any_model_s():
    with one_line_error("claims a header of 16777217 bytes"):
        load((2**24 + 1).to_bytes(8, "little") + bytes(2**24 + 1))


def test_a_mutated_file_is_read_or_refused():
    content = safetensors.torch.save({"a": torch.randn(3, 2), "b": torch.randn(2).half()})
    rng = random.Random(0)
    for _ in range(1000):
        mutated = bytearray(content)
        mutated[rng.randrange(140)] = rng.randrange(256)
        try:
            for tensor in load(bytes(mutated)).values():
                tensor.read()
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017
