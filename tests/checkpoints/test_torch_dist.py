"""`torch_dist` folders, written by torch: what is read, and what is refused."""

import contextlib
import copy
import dataclasses
import pickle
import random
import time

import hostile
import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoint_helpers import one_line_error
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from keras_megatron.checkpoints.mapped_files import MappedFile
from keras_megatron.checkpoints.sources import open_checkpoint
from keras_megatron.checkpoints.torch_dist import read_torch_dist

pytestmark = pytest.mark.backend_independent
FILE = "__0_0.distcp"
STACK = "encoder.layers.mlp.linear_fc1.weight"


@pytest.fixture(scope="module")
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "embedding.word_embeddings.weight": torch.randn(8, 4, generator=generator),
        STACK: torch.randn(3, 5, 4, generator=generator),
        "encoder.layers.7.mlp.linear_fc2.bias": torch.randn(6, generator=generator).half(),
        "encoder.final_layernorm.bias": torch.randn(4, generator=generator).bfloat16(),
        "encoder.scale": torch.tensor(3.0),
        "optimizer.state.exp_avg.embedding.word_embeddings.weight": torch.zeros(8, 4),
        "rng_state": torch.zeros(3),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory, tensors):
    """The bytes of each file of a checkpoint."""
    folder = tmp_path_factory.mktemp("torch_dist")
    with pytest.warns(UserWarning, match="single process"):
        dcp.save({**tensors, "step": 7}, checkpoint_id=folder)
    torch.save({"iteration": 7, "args": {"num_layers": 3}}, folder / "common.pt")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read(files):
    return read_torch_dist(lambda name: MappedFile(memoryview(files[name])), files.__contains__)


def with_metadata(files, change):
    """The files with metadata that a function has changed."""
    metadata = pickle.loads(files[".metadata"])
    change(metadata)
    return {**files, ".metadata": pickle.dumps(metadata)}


def test_tensors_and_layers(written, tensors):
    content = read(written)
    assert content["iteration"] == 7
    assert content["args"] == {"num_layers": 3}
    model = content["model"]
    expected = {
        name: tensor for name, tensor in tensors.items() if name.startswith("e") and name != STACK
    }
    for layer in range(3):
        expected[f"encoder.layers.{layer}.mlp.linear_fc1.weight"] = tensors[STACK][layer]
    assert model.keys() == expected.keys()
    for name, tensor in expected.items():
        assert model[name].shape == tuple(tensor.shape)
        read_back = model[name].read()
        assert read_back.dtype == model[name].dtype
        np.testing.assert_array_equal(read_back.astype("f4"), tensor.float().numpy())


def test_names_below_model(tmp_path, tensors):
    with pytest.warns(UserWarning, match="single process"):
        dcp.save({"model": {STACK: tensors[STACK]}}, checkpoint_id=tmp_path)
    (shard,) = open_checkpoint(tmp_path, tmp_path)
    assert sorted(shard.content["model"]) == [
        f"encoder.layers.{layer}.mlp.linear_fc1.weight" for layer in range(3)
    ]


# === What is refused ===


def test_truncated_and_damaged_metadata(written):
    content = written[".metadata"]
    for size in (*range(0, len(content), 37), len(content) - 1):
        with one_line_error(".metadata"):
            read({**written, ".metadata": content[:size]})
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        with contextlib.suppress(ValueError):  # some bits matter to nobody
            read({**written, ".metadata": bytes(damaged)})


def test_truncated_and_missing_pieces(written):
    content = written[FILE]
    for size in (1, len(content) // 4):
        with one_line_error(FILE, "truncated"):
            read({**written, FILE: content[:size]})
    with one_line_error(FILE, "not written by torch.save"):
        read({**written, FILE: bytes(len(content))})
    with one_line_error(FILE, "missing"):
        read({name: data for name, data in written.items() if name != FILE})
    with one_line_error("common.pt"):
        read({**written, "common.pt": b"nothing"})
    assert read({k: v for k, v in written.items() if k != "common.pt"})["args"] == {}


@pytest.mark.parametrize("case", hostile.running_pickles(""))
def test_code_in_the_metadata_does_not_run(written, case, tmp_path):
    marker = tmp_path / "it ran"
    with one_line_error(".metadata", "refused"):
        read({**written, ".metadata": hostile.running_pickles(marker)[case]})
    time.sleep(0.02)
    assert not marker.exists()


def set_chunks(chunks):
    def change(metadata):
        stored = metadata.state_dict_metadata[STACK]
        stored.chunks = [
            ChunkStorageMetadata(torch.Size(start), torch.Size(size)) for start, size in chunks
        ]
        (place,) = (v for k, v in metadata.storage_data.items() if k.fqn == STACK)
        for start, _ in chunks:
            metadata.storage_data[MetadataIndex(STACK, start)] = place

    return change


WHOLE = ((0, 0, 0), (3, 5, 4))


@pytest.mark.parametrize(
    ("chunks", "part"),
    [
        ([((0, 0, 0), (3, 5, 3))], "not covered"),
        ([((0, 0, 0), (3, 5, 5))], "not covered"),
        ([((0, 0, 0), (3, 4, 4)), ((0, 3, 0), (3, 1, 4))], "not covered"),
        ([WHOLE, WHOLE], "not covered"),
        ([((1, 0, 0), (3, 5, 4))], "not covered"),
        ([((0, 0, 0), (10**15, 5, 4))], "not covered"),
        ([((0, 0, 0), (3, 5, 0))], "other dimensions"),
        ([((0, 0), (3, 20))], "other dimensions"),
        ([((0, 0, 0), (1, 5, 4)), ((1, 0), (2, 5))], "other dimensions"),
        ([], "pieces"),
        ([((0, 0, 0), (1, 5, 4)), ((1, 0, 0), (2, 5, 4))], "no float32 array (1, 5, 4)"),
    ],
)
def test_pieces_that_do_not_make_a_tensor(written, chunks, part):
    with one_line_error(STACK, part):
        read(with_metadata(written, set_chunks(chunks)))
    read(with_metadata(written, set_chunks([WHOLE])))


def set_size(metadata):
    metadata.state_dict_metadata[STACK].size = torch.Size((10**12, 10**6, 4))


def set_dtype(metadata):
    metadata.state_dict_metadata[STACK].properties.dtype = torch.float64


def set_odd_dtype(metadata):
    metadata.state_dict_metadata[STACK].properties.dtype = "float32"


def forget_places(metadata):
    metadata.storage_data.clear()


def no_tables(metadata):
    metadata.storage_data = [1]


def no_size(metadata):
    del metadata.state_dict_metadata[STACK].size


def odd_chunk(metadata):
    metadata.state_dict_metadata[STACK].chunks = [3]


def set_place(**values):
    def change(metadata):
        for index, place in metadata.storage_data.items():
            if index.fqn == STACK:
                metadata.storage_data[index] = dataclasses.replace(place, **values)

    return change


DOUBLED = ()
for _ in range(60):
    DOUBLED = (DOUBLED, DOUBLED)


class OddIndex:
    """Pickles as an index whose name is doubled tuples; has a hash here, where torch's would not.

    Hashing or spelling those out takes for ever.
    """

    def __reduce_ex__(self, _):
        return MetadataIndex, (), {"fqn": DOUBLED, "offset": None}


def odd_index(metadata):
    metadata.storage_data = {OddIndex(): 1}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (set_size, ["not covered"]),
        (set_dtype, ["no float64 array"]),
        (set_odd_dtype, ["type that is not supported"]),
        (forget_places, ["where"]),
        (no_tables, ["no tables"]),
        (no_size, ["TensorStorageMetadata without size"]),
        (odd_chunk, ["int where a ChunkStorageMetadata belongs"]),
        (odd_index, ["where"]),
        (set_place(relative_path="../__0_0.distcp"), ["refused", "../__0_0.distcp"]),
        (set_place(relative_path="/etc/passwd"), ["refused", "/etc/passwd"]),
        (set_place(relative_path="a/b.distcp"), ["refused", "a/b.distcp"]),
        (set_place(relative_path="common.pt"), ["refused", "common.pt"]),
        (set_place(relative_path=DOUBLED), ["refused", "tuple"]),
        (set_place(relative_path="__9_9.distcp"), ["__9_9.distcp is missing"]),
        (set_place(offset=-1), ["makes no sense"]),
        (set_place(offset=10**12), ["truncated"]),
        (set_place(length=10**12), ["truncated"]),
        (set_place(length=DOUBLED), ["makes no sense"]),
        (set_place(transform_descriptors=["zstd"]), ["compressed"]),
    ],
)
def test_tables_that_make_no_sense(written, change, parts):
    start = time.monotonic()
    with one_line_error(*parts):
        read(with_metadata(written, change))
    assert time.monotonic() - start < 5


def test_pieces_do_not_share_bytes(written):
    def change(metadata):
        stored, places = metadata.state_dict_metadata, metadata.storage_data
        (place,) = (place for index, place in places.items() if index.fqn == STACK)
        for number in range(100):
            name = f"copy_{number}"
            stored[name] = copy.copy(stored[STACK])
            places[MetadataIndex(name, (0, 0, 0))] = place

    with one_line_error(FILE, "truncated"):
        read(with_metadata(written, change))


def test_a_name_longer_than_any_weight_s(written):
    def change(metadata):
        metadata.state_dict_metadata["x" * 1000] = metadata.state_dict_metadata[STACK]

    with one_line_error("1000 characters"):
        read(with_metadata(written, change))


def test_a_piece_that_is_no_tensor(written):
    def change(metadata):
        places = {index.fqn: (index, place) for index, place in metadata.storage_data.items()}
        index, place = places[STACK]
        metadata.storage_data[index] = copy.copy(places["step"][1])
        metadata.storage_data[index].relative_path = place.relative_path

    with one_line_error(STACK, FILE):
        read(with_metadata(written, change))


def test_a_layer_there_twice(written):
    def change(metadata):
        stored = metadata.state_dict_metadata
        name = "encoder.layers.7.mlp.linear_fc2.bias"
        stored["encoder.layers.mlp.linear_fc2.bias"] = stored[name]
        stored["encoder.layers.0.mlp.linear_fc2.bias"] = stored[name]
        places = metadata.storage_data
        for index, place in list(places.items()):
            if index.fqn == name:
                for other in ("encoder.layers", "encoder.layers.0"):
                    places[MetadataIndex(f"{other}.mlp.linear_fc2.bias", index.offset)] = place

    with one_line_error("encoder.layers.0.mlp.linear_fc2.bias", "twice"):
        read(with_metadata(written, change))
