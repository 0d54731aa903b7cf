"""Folders, zips and files of several ranks: all shards of the one checkpoint are found."""

import io
import zipfile

import pytest
import sharded_format
import torch
import torch.distributed.checkpoint as dcp
from checkpoint_helpers import make_reference, one_line_error, tree
from test_sources import TRACKER, write_folder, write_zip

from keras_megatron.checkpoints import convert_checkpoint
from keras_megatron.checkpoints.sources import open_checkpoint

pytestmark = pytest.mark.backend_independent
RANKS = ("mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001")


def shard_bytes(value):
    buffer = io.BytesIO()
    torch.save({"value": value}, buffer)
    return buffer.getvalue()


def grid(folder, first=0, ranks=RANKS, file="model_optim_rng.pt"):
    return {f"{folder}{name}/{file}": shard_bytes(first + i) for i, name in enumerate(ranks)}


def values(source, scratch):
    """By rank, what the shards that were found hold."""
    shards = open_checkpoint(source, scratch)
    assert all(shard.name.startswith("mp_rank_") for shard in shards)
    return {(s.tensor_rank, s.pipeline_rank): s.content["value"] for s in shards}


EXPECTED = {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3}
TREES = {
    "ranks at the top": grid(""),
    "release": {**grid("release/"), TRACKER: b"release"},
    "iteration": {**grid("iter_0000300/"), TRACKER: b"300\n"},
    "the tracked of two": {**grid("iter_0000100/"), **grid("iter_0000200/", 9), TRACKER: b"100"},
    "folder in a folder": {**grid("top/iter_0000300/"), f"top/{TRACKER}": b"300"},
    "optimizer apart": {
        **grid("release/", file="model_rng.pt"),
        "release/mp_rank_00_000_000/optim.pt": b"optimizer",
    },
}


@pytest.mark.parametrize("case", TREES)
def test_folders_and_zips(tmp_path, empty, case):
    assert values(write_folder(tmp_path / "folder", TREES[case]), empty) == EXPECTED
    assert values(write_zip(tmp_path / "zip", TREES[case]), empty) == EXPECTED


def test_a_compressed_zip(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    source = write_zip(tmp_path / "zip", grid("release/"), zipfile.ZIP_DEFLATED)
    assert values(source, scratch) == EXPECTED
    assert len([name for name in tree(scratch) if name.endswith("unpacked")]) == 4


def test_tensor_ranks_only(tmp_path, empty):
    names = [f"mp_rank_{rank:02d}" for rank in range(8)]
    folder = write_folder(tmp_path / "folder", grid("release/", ranks=names))
    assert values(folder, empty) == {(rank, 0): rank for rank in range(8)}


def test_a_file_or_folder_of_one_rank_brings_its_siblings(tmp_path, empty, monkeypatch):
    folder = write_folder(tmp_path / "folder", grid("release/"))
    rank = folder / "release" / "mp_rank_01_000"
    assert values(rank, empty) == EXPECTED
    assert values(rank / "model_optim_rng.pt", empty) == EXPECTED
    monkeypatch.chdir(rank)
    assert values("model_optim_rng.pt", empty) == EXPECTED
    assert values(".", empty) == EXPECTED


def test_a_damaged_shard_is_named(tmp_path, empty):
    files = grid("release/")
    name = "release/mp_rank_01_000/model_optim_rng.pt"
    files[name] = files[name][:200]
    with one_line_error(tmp_path, "mp_rank_01_000", "truncated"):
        open_checkpoint(write_folder(tmp_path / "folder", files), empty)


def test_iterations_are_not_mixed(tmp_path, empty):
    files = {**grid("iter_0000100/"), **grid("iter_0000200/")}
    with one_line_error("iter_0000100/, iter_0000200/", TRACKER):
        open_checkpoint(write_folder(tmp_path / "folder", files), empty)


def test_torch_dist_in_a_zip(tmp_path, empty):
    folder = tmp_path / "folder" / "iter_0000007"
    tensors = {"encoder.final_layernorm.bias": torch.arange(4.0)}
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(tensors, checkpoint_id=folder)
    torch.save({"iteration": 7}, folder / "common.pt")
    files = {f"iter_0000007/{path.name}": path.read_bytes() for path in folder.iterdir()}
    source = write_zip(tmp_path / "zip", {**files, TRACKER: b"7"})
    for found in (source, folder.parent, folder, folder / ".metadata", folder / "__0_0.distcp"):
        (shard,) = open_checkpoint(found, empty)
        assert shard.content["iteration"] == 7
        bias = shard.content["model"]["encoder.final_layernorm.bias"]
        assert bias.read().tolist() == [0, 1, 2, 3]
    del files["iter_0000007/__0_0.distcp"]
    with one_line_error(tmp_path, "__0_0.distcp is missing"):
        open_checkpoint(write_folder(tmp_path / "without", files), empty)


# === From a folder to a preset ===


@pytest.fixture
def run(tmp_path):
    model = make_reference(num_hidden_layers=2)
    folder = tmp_path / "run" / "iter_0000100"
    sharded_format.write_shards(folder, sharded_format.shards(model, 3.0, 2, 2))
    (tmp_path / "run" / TRACKER).write_text("100")
    return tmp_path / "run"


def test_conversion_says_what_it_found(tmp_path, run, vocabulary, capsys):
    assert not convert_checkpoint(run, tmp_path / "preset", vocabulary)
    printed = capsys.readouterr().out
    assert "checkpoint version 3, 4 shards, 2 for each layer" in printed
    assert "128 of 256 rows of words cut" in printed


@pytest.mark.parametrize(
    ("gone", "part"),
    [
        ("mp_rank_01_001", "mp_rank_01_001 is missing"),
        ("mp_rank_00_000", "mp_rank_00_000 is missing"),
    ],
)
def test_a_missing_shard(tmp_path, run, vocabulary, gone, part):
    (run / "iter_0000100" / gone).rename(tmp_path / "elsewhere")
    with one_line_error(part, "give the folder"):
        convert_checkpoint(run, tmp_path / "preset", vocabulary, progress=False)
    with one_line_error("4 shards", "missing"):  # moved out of its folder, it is alone
        convert_checkpoint(tmp_path / "elsewhere", tmp_path / "preset", vocabulary, progress=False)
    assert not (tmp_path / "preset").exists()


def test_no_such_file(tmp_path, empty):
    with one_line_error("No such file"):
        open_checkpoint(tmp_path / "mp_rank_00" / "model_optim_rng.pt", empty)
    with one_line_error("mp_rank_00", ".metadata"):
        open_checkpoint(empty, empty)
