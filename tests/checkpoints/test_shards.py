"""Checkpoints of several ranks against the Hugging Face model that they were split from."""

import io
import itertools

import numpy as np
import pytest
import release_format
import sharded_format
import torch
from checkpoint_helpers import make_reference, one_line_error

from keras_megatron.checkpoints.mapped_files import MappedFile
from keras_megatron.checkpoints.megatron import read_megatron
from keras_megatron.checkpoints.shards import Shard
from keras_megatron.checkpoints.torch_files import load_torch_file
from keras_megatron.checkpoints.vocabulary_rows import cut_padding

pytestmark = pytest.mark.backend_independent
PIECES = 100
GRIDS = [(t, *p) for t in (1, 2, 4, 8) for p in ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2))]
SIZES = {"num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 64}


@pytest.fixture(scope="module")
def model():
    return make_reference(**SIZES)


def reload(found):
    """The shards as they are read from their files."""
    loaded = []
    for rank, content in found.items():
        buffer = io.BytesIO()
        torch.save(content, buffer)
        content = load_torch_file(MappedFile(memoryview(buffer.getvalue())))
        loaded.append(Shard(*rank, content, f"mp_rank_{rank[0]:02d}_{rank[1]:03d}"))
    return loaded


def read(found, **options):
    return cut_padding(read_megatron(reload(found), **options), PIECES)


def different(found, model):
    """Names of the weights that are not, bit by bit, the model's."""
    expected = {name: value.numpy() for name, value in model.state_dict().items()}
    for tied in ("weight", "bias"):
        expected.pop(f"cls.predictions.decoder.{tied}", None)
    assert found.weights.keys() == expected.keys()
    return {
        name
        for name, tensor in found.weights.items()
        if tensor.shape != expected[name].shape
        or not np.array_equal(tensor.read(), expected[name])
        or tensor.read().shape != tensor.shape
    }


@pytest.mark.parametrize("version", [0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "TP{} PP{} VP{}".format(*grid))
def test_every_grid_and_version(model, grid, version):
    found = read(sharded_format.shards(model, version, *grid))
    assert different(found, model) == set()
    assert found.config["num_layers"] == 8
    assert found.config["vocabulary_size"] == 128
    assert found.config["num_heads"] == 8
    assert "head_dim" not in found.config
    cut = [note for note in found.notes if "rows of words cut" in note]
    assert cut == ([f"{128 * grid[0] - 128} of {128 * grid[0]} {CUT}"] if grid[0] > 1 else [])


CUT = "rows of words cut: padding for tensor parallelism"


@pytest.mark.parametrize("names", [release_format.LATER_NAMES, release_format.NEWEST_NAMES])
def test_later_names(model, names):
    assert not different(read(sharded_format.shards(model, 2.0, 2, 2, 2, names=names)), model)


def test_layers_split_unevenly(model):
    chunks = [[range(1)], [range(1, 6)], [range(6, 6)], [range(6, 8)]]
    assert not different(read(sharded_format.shards(model, 0, 2, 4, chunks=chunks)), model)
    chunks = [[range(2), range(5, 6)], [range(2, 5), range(6, 8)]]
    assert not different(read(sharded_format.shards(model, 0, 1, 2, chunks=chunks)), model)


def test_without_arguments(model):
    found = sharded_format.shards(model, 0, 2, 2)
    for content in found.values():
        del content["args"]
    assert not different(read(found, num_heads=8), model)


def test_head_counts_of_its_own(model):
    """Heads that are not 64 wide and not a part of the hidden size: kv_channels."""
    model = make_reference(hidden_size=32, num_hidden_layers=2)
    wide = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    for name, value in wide.items():
        if ".attention.self." in name:
            wide[name] = torch.randn(4 * 12, *value.shape[1:], generator=generator)
        elif name.endswith("attention.output.dense.weight"):
            wide[name] = torch.randn(32, 4 * 12, generator=generator)
    model.state_dict = lambda: wide
    for grid, version in itertools.product([(1,), (2, 2), (4, 1)], (0, 1.0, 3.0)):
        saved = sharded_format.shards(model, version, *grid, arguments={"kv_channels": 12})
        found = read(saved)
        assert different(found, model) == set()
        assert found.config["head_dim"] == 12
        assert "4 attention heads (by the checkpoint's arguments, 12 wide each)" in found.notes
    saved = sharded_format.shards(model, 3.0, arguments={"kv_channels": 16})
    with one_line_error("kv_channels=16", "12 wide", "--num-heads"):
        read(saved)


# === Negative controls ===


def swap(found, first, second):
    found[first], found[second] = found[second], found[first]


def test_swapped_tensor_ranks_show(model):
    found = sharded_format.shards(model, 0, 4)
    swap(found, (0, 0), (1, 0))  # the others have no row of words that is not padding
    assert {name.rsplit(".", 2)[-2] for name in different(read(found), model)} >= {
        *("query", "key", "value", "dense", "word_embeddings"),
    }


def test_swapped_stages_show(model):
    found = sharded_format.shards(model, 0, 2, 4)
    for rank in (0, 1):
        swap(found, (rank, 1), (rank, 2))
    layers = {int(name.split(".")[3]) for name in different(read(found), model)}
    assert layers == {2, 3, 4, 5}


def test_swapped_chunks_show(model):
    found = sharded_format.shards(model, 0, 1, 2, 2)
    stage = found[0, 0]
    language_models = [stage[key]["language_model"] for key in ("model0", "model1")]
    first, second = (language_model["transformer"] for language_model in language_models)
    language_models[0]["transformer"], language_models[1]["transformer"] = second, first
    layers = {int(name.split(".")[3]) for name in different(read(found), model)}
    assert layers == {0, 1, 4, 5}


@pytest.mark.parametrize(("stored", "read_as"), [(0, 1.0), (0, 2.0), (1.0, 0), (2.0, 0)])
def test_another_version_shows(model, stored, read_as):
    found = sharded_format.shards(model, stored, 2)
    for content in found.values():
        content["checkpoint_version"] = read_as
    assert len(different(read(found), model)) == 3 * 2 * 8  # query, key and value of each layer


def test_ranks_joined_before_they_are_split_show(model):
    """What version 0 gives when query_key_value is joined as any column-parallel weight."""
    found = sharded_format.shards(model, 0, 2)
    name = "layers.0.attention.query_key_value.weight"
    parts = [c["model"]["language_model"]["transformer"][name] for c in found.values()]
    strided = torch.cat(parts)
    whole = release_format.model_state(model, 0)["language_model"]["transformer"][name]
    assert not torch.equal(strided, whole)
    assert not different(read(found), model)


# === What is refused ===


@pytest.mark.parametrize(
    ("grid", "gone", "parts"),
    [
        ((4, 2), (3, 1), ["mp_rank_03_001", "8 shards"]),
        ((4, 2), (0, 0), ["mp_rank_00_000"]),
        ((4, 1), (2, 0), ["mp_rank_02 ", "4 shards", "tensor_model_parallel_size=4"]),
        ((4, 1), (3, 0), ["mp_rank_03 "]),
        ((1, 4), (0, 3), ["mp_rank_00_003", "pipeline_model_parallel_size=4"]),
    ],
)
@pytest.mark.parametrize("arguments", [True, False])
def test_a_missing_rank_is_named(model, grid, gone, parts, arguments):
    found = sharded_format.shards(model, 3.0, *grid)
    del found[gone]
    if not arguments:
        for content in found.values():
            del content["args"]
        if gone in ((3, 0), (0, 3)):  # the last of its kind: nothing tells that it is not all
            return
    with one_line_error("missing", "folder", *parts):
        read(found)


def test_a_virtual_pipeline_without_a_chunk(model):
    found = sharded_format.shards(model, 3.0, 1, 2, 2)
    del found[0, 1]["model0"]
    with one_line_error("mp_rank_00_001", "[1]"):
        read(found)
    found = sharded_format.shards(model, 3.0, 1, 2, 2)
    del found[0, 0]["model1"]
    with one_line_error("same number of chunks"):
        read(found)
    found = sharded_format.shards(model, 3.0, 1, 2, 2)
    del found[0, 0]["model1"], found[0, 1]["model1"]
    with one_line_error("4 layers", "8"):
        read(found)


@pytest.mark.parametrize("key", ["iteration", "checkpoint_version"])
def test_shards_of_two_moments(model, key):
    found = sharded_format.shards(model, 2.0, 2, 2)
    found[1, 0][key] = 3
    with one_line_error("mp_rank_01_000", key, "not of one checkpoint"):
        read(found)


def test_shards_of_another_grid(model):
    found = sharded_format.shards(model, 2.0, 2)
    found[1, 0]["args"].tensor_model_parallel_size = 1
    with one_line_error("mp_rank_01", "tensor_model_parallel_size=1", "2"):
        read(found)


def stage(content):
    return content["model"]["language_model"]["transformer"]


def test_copies_must_be_equal(model):
    for name in ("layers.3.input_layernorm.weight", "layers.1.mlp.dense_4h_to_h.bias"):
        found = sharded_format.shards(model, 2.0, 2)
        stage(found[1, 0])[name][3] += 1
        with one_line_error(name, "rank 1", "not of one checkpoint"):
            read(found)


def test_the_last_stage_s_copy_of_the_words_must_be_one(model):
    found = sharded_format.shards(model, 2.0, 2, 2)
    found[1, 1]["model"]["word_embeddings_for_head"]["weight"][3, 3] += 1
    with one_line_error("word_embeddings_for_head", "tied"):
        read(found)


def test_ranks_with_other_shapes_or_names(model):
    found = sharded_format.shards(model, 2.0, 2)
    name = "layers.3.mlp.dense_h_to_4h.bias"
    stage(found[1, 0])[name] = torch.zeros(5)
    with one_line_error(name, "same shape"):
        read(found)
    del stage(found[1, 0])[name]
    with one_line_error("tensor rank 1 lacks", name):
        read(found)
    found = sharded_format.shards(model, 2.0, 2)
    stage(found[1, 0])[name] = stage(found[1, 0])[name].half()
    with one_line_error(name, "same"):
        read(found)


def test_a_weight_in_two_stages(model):
    found = sharded_format.shards(model, 2.0, 1, 2)
    stage(found[0, 0])["final_layernorm.bias"] = torch.zeros(32)
    with one_line_error("final_layernorm.bias", "two stages"):
        read(found)


def test_heads_that_ranks_cannot_share(model):
    found = sharded_format.shards(model, 2.0, 8, arguments={"num_attention_heads": 4})
    with one_line_error("4 attention heads", "8 tensor ranks", "--num-heads"):
        read(found)
