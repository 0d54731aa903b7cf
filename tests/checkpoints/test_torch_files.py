"""Both serializations of torch, against torch itself."""

import argparse
import collections
import io
import random
import zipfile

import hostile
import ml_dtypes
import numpy as np
import pytest
import torch
from checkpoint_helpers import make_reference, one_line_error
from release_format import checkpoint

from keras_megatron.checkpoints.mapped_files import LazyArray, MappedFile
from keras_megatron.checkpoints.pickled_values import Arguments, PickledArray
from keras_megatron.checkpoints.torch_files import load_torch_file

pytestmark = pytest.mark.backend_independent
DTYPES = (
    *("float32", "float16", "bfloat16", "float64"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
both_serializations = pytest.mark.parametrize("legacy", [False, True], ids=["archive", "stream"])


def saved(value, legacy, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy, **options)
    return buffer.getvalue()


def load(content):
    return load_torch_file(MappedFile(memoryview(content)))


def bits(tensor):
    """A torch tensor as numpy bytes; numpy knows no bfloat16."""
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


@both_serializations
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, legacy):
    tensor = (torch.randn(5, 3) * 10).to(getattr(torch, dtype))
    read = load(saved({"tensor": tensor}, legacy))["tensor"]
    expected = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    assert (read.shape, read.dtype) == ((5, 3), expected)
    np.testing.assert_array_equal(read.read().reshape(-1).view(np.uint8), bits(tensor))


@both_serializations
def test_views_of_one_storage(legacy):
    base = torch.arange(60.0).reshape(3, 4, 5)
    views = {
        "whole": base,
        "transposed": base.transpose(0, 2),
        "offset": base[1:, 2:],
        "strided": base[::2, :, 1::2],
        "number": base[2, 3, 4],
        "empty": base[:, 4:],
        "parameter": torch.nn.Parameter(base[1].t()),
    }
    read = load(saved(views, legacy))
    for name, view in views.items():
        assert read[name].shape == tuple(view.shape)
        np.testing.assert_array_equal(read[name].read(), view.detach().numpy(), err_msg=name)


@both_serializations
def test_tensors_with_attributes(legacy):
    tensor = torch.randn(2, 3)
    tensor.tensor_model_parallel = True  # as Megatron's optimizer marks its copies
    parameter = torch.nn.Parameter(torch.randn(2))
    parameter.shared = True
    read = load(saved([tensor, parameter], legacy))
    np.testing.assert_array_equal(read[0].read(), tensor.numpy())
    np.testing.assert_array_equal(read[1].read(), parameter.detach().numpy())


@both_serializations
def test_a_whole_checkpoint_with_optimizer_and_rng_states(legacy):
    state = checkpoint(make_reference(), arguments={"seen": {1, 2}, "betas": np.ones((2, 3), "f4")})
    read = load(saved(state, legacy))
    assert read.keys() == state.keys()
    assert isinstance(read["args"], Arguments)
    assert read["args"].values["hidden_size"] == state["args"].hidden_size
    assert read["args"].values["seen"] == [1, 2]
    assert read["args"].values["lr"] == state["args"].lr
    np.testing.assert_array_equal(read["args"].values["betas"].array, state["args"].betas)
    assert read["tokens"] == state["tokens"]
    assert read["random_rng_state"] == state["random_rng_state"]
    kind, keys, *rest = read["np_rng_state"]
    assert (kind, *rest) == (state["np_rng_state"][0], *state["np_rng_state"][2:])
    assert isinstance(keys, PickledArray)
    np.testing.assert_array_equal(keys.array, state["np_rng_state"][1])
    np.testing.assert_array_equal(read["torch_rng_state"].read(), state["torch_rng_state"].numpy())
    optimizer = read["optimizer"]["fp32_from_fp16"][0]
    expected = state["optimizer"]["fp32_from_fp16"][0]
    for tensor, reference in zip(optimizer, expected, strict=True):
        np.testing.assert_array_equal(tensor.read(), reference.detach().numpy())


@both_serializations
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(protocol, legacy):
    value = collections.OrderedDict(a=torch.ones(2), args=argparse.Namespace(n=np.int64(3)))
    read = load(saved(value, legacy, pickle_protocol=protocol))
    np.testing.assert_array_equal(read["a"].read(), np.ones(2))
    assert read["args"].values == {"n": 3}


def test_fortran_order_and_byte_order_of_numpy_arrays():
    arrays = [np.arange(6).reshape(2, 3).T, np.arange(4, dtype=">i4"), np.array(2.5)]
    read = load(saved(arrays, True))
    for pickled, array in zip(read, arrays, strict=True):
        np.testing.assert_array_equal(pickled.array, array)


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"a": torch.zeros(1000), "b": torch.zeros(10)}, path)
    read = load_torch_file(MappedFile.open(path))
    content = bytearray(path.read_bytes())
    start = content.index(b"\0" * 4000)
    with open(path, "r+b") as file:  # the mapping is shared with the file
        file.seek(start)
        file.write(np.float32(7).tobytes())
    assert read["a"].read()[0] == 7


# === Damage ===


@both_serializations
def test_truncation_at_every_place(legacy):
    content = saved({"a": torch.randn(20, 3), "args": argparse.Namespace(x=1)}, legacy)
    for size in range(len(content)):
        with one_line_error():
            load(content[:size])


@both_serializations
def test_a_mutated_file_is_read_or_refused(legacy):
    state = {
        "a": torch.randn(7, 3).t(),
        "b": torch.randn(4).half(),
        "args": argparse.Namespace(x=np.float64(1), y=[1, (2, 3)]),
        "rng": np.random.get_state(),
    }
    content = saved(state, legacy)
    rng = random.Random(0)
    outcomes = collections.Counter()
    for _ in range(1500):
        mutated = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            # The pickle is short, so aim at it half of the time.
            place = rng.randrange(min(800, len(mutated))) if rng.random() < 0.5 else None
            mutated[rng.randrange(len(mutated)) if place is None else place] = rng.randrange(256)
        try:
            read = load(bytes(mutated))
            for tensor in read.values() if isinstance(read, dict) else ():
                if isinstance(tensor, LazyArray):
                    tensor.read().sum()
            outcomes["read"] += 1
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017
            outcomes["refused"] += 1
    assert min(outcomes["read"], outcomes["refused"]) > 100


def tensor_pickle(offset, shape, strides, size):
    def numbers(values):
        return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"

    rebuild = hostile.name("torch._utils", "_rebuild_tensor_v2")
    arguments = (
        storage(0, size),
        b"I%d\n" % offset,
        numbers(shape),
        numbers(strides),
        b"\x89",
        b"N",
    )
    return hostile.finish(hostile.call(rebuild, *arguments))


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "size"),
    [
        (0, (5,), (1,), 4),
        (1, (4,), (1,), 4),
        (-1, (2,), (1,), 4),
        (3, (2,), (-1,), 4),
        (0, (-2,), (1,), 4),
        (0, (2, 2), (2,), 4),
        (0, (2, 2), (3, 1), 4),
        (0, (1 << 40,), (0,), 4),
        (0, (1 << 40, 1 << 40), (0, 0), 4),
        (0, (4,), (1,), 1 << 60),
        (0, (4,), (1,), -4),
        (0, (1,) * 9, (1,) * 9, 4),
        (0, (1,), (1 << 62,), 4),
        (0, (1,), (1 << 70,), 4),
        (0, (0, 1 << 70), (1, 1), 4),
        (1 << 70, (0,), (1,), 4),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(offset, shape, strides, size):
    for wrap in (hostile.as_stream, hostile.as_archive):
        with one_line_error():
            load(wrap(tensor_pickle(offset, shape, strides, size)))


def test_a_view_of_what_is_no_storage_is_refused():
    """A number of numpy's has a size and a dtype, as a storage does."""
    dtype = hostile.call(hostile.name("numpy", "dtype"), hostile.text("f4"))
    scalar = hostile.name("numpy.core.multiarray", "scalar")
    made = hostile.call(scalar, dtype, hostile.data(bytes(4)))
    rebuild = hostile.name("torch._utils", "_rebuild_tensor_v2")
    arguments = (made, b"K\x00", b"K\x01\x85", b"K\x01\x85", b"\x89", b"N")
    with one_line_error("view of a float32"):
        load(hostile.as_archive(hostile.finish(hostile.call(rebuild, *arguments))))


@both_serializations
def test_tensors_cannot_use_a_storage_without_end(legacy):
    base = torch.zeros(100)
    load(saved([base[:] for _ in range(16)], legacy))
    with one_line_error("16 times"):
        load(saved([base[:] for _ in range(17)], legacy))


def test_storages_of_a_zip_are_not_the_same_bytes():
    """The table of members says that three are where the first is; the others have no bytes."""
    content = as_zip({0: bytes(8000), 1: b"", 2: b""}, [2000] * 3)
    first, *others = (content.rindex(f"archive/data/{key}".encode()) - 46 for key in range(3))
    for other in others:
        for start, end in ((16, 28), (42, 46)):  # checksum and sizes, place
            content[other + start : other + end] = content[first + start : first + end]
    with one_line_error("same bytes"):
        load(bytes(content))
    load(bytes(as_zip(dict.fromkeys(range(3), bytes(8000)), [2000] * 3)))


def as_zip(storages, sizes):
    tensors = [
        hostile.call(
            hostile.name("torch._utils", "_rebuild_tensor_v2"),
            *(storage(key, size), b"K\x00", b"K\x01\x85", b"K\x01\x85", b"\x89", b"N"),
        )
        for key, size in enumerate(sizes)
    ]
    buffer = io.BytesIO(hostile.as_archive(hostile.finish(b"(" + b"".join(tensors) + b"l")))
    with zipfile.ZipFile(buffer, "a") as archive:
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
    return bytearray(buffer.getvalue())


def storage(key, size):
    kind = hostile.name("torch", "FloatStorage")
    parts = (hostile.text("storage"), kind, hostile.text(key), hostile.text("cpu"))
    return b"(" + b"".join(parts) + b"I%d\ntQ" % size


def test_backslashes_in_names_are_no_escapes(recwarn):
    with one_line_error("refused"):
        load(hostile.as_archive(hostile.finish(hostile.name("a\\q", "b\\q"))))
    assert not recwarn.list


def test_other_files_are_refused():
    with one_line_error("not written by torch.save"):
        load(b"# Megatron\n" * 50)
    with one_line_error("big-endian"):
        load(saved([1], True).replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    with one_line_error("neither"):
        load(hostile.as_archive(b"").replace(b"data.pkl", b"data.xyz"))
    with one_line_error("refused"):
        load(saved({"a": torch.randn(2, 2).to(torch.float8_e4m3fn)}, False))
