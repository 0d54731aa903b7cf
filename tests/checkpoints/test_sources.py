"""Zips, folders and files: which checkpoint is found, and what is refused."""

import io
import os
import random
import shutil
import struct
import zipfile

import pytest
import torch
from checkpoint_helpers import one_line_error, tree

from keras_megatron.checkpoints.sources import open_checkpoint

pytestmark = pytest.mark.backend_independent
TRACKER = "latest_checkpointed_iteration.txt"


def checkpoint_bytes(iteration=0, legacy=False):
    buffer = io.BytesIO()
    state = {"iteration": iteration, "tensor": torch.full((1000,), float(iteration))}
    torch.save(state, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def rank(folder, name="mp_rank_00"):
    return f"{folder}/{name}/model_optim_rng.pt" if folder else f"{name}/model_optim_rng.pt"


def write_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_zip(path, files, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def iteration(source, scratch):
    (shard,) = open_checkpoint(source, scratch)
    content = shard.content
    assert content["tensor"].read().tolist() == [content["iteration"]] * 1000
    return content["iteration"]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("top", ["", "megatron_bert/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_release_zip(tmp_path, empty, method, top, legacy):
    files = {
        top + TRACKER: b"release\n",
        top + rank("release"): checkpoint_bytes(7, legacy),
        top + "README.md": b"Megatron",
    }
    source = write_zip(tmp_path / "release.zip", files, method)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert iteration(source, scratch) == 7
    # A stored member is read in place, another unpacked.
    assert len(tree(scratch)) == (0 if method == zipfile.ZIP_STORED else 2)


TREES = {
    "as released": ({rank("release"): 1, TRACKER: b"release"}, 1),
    "no tracker": ({rank("release"): 1}, 1),
    "iteration": ({rank("iter_0000300"): 300, TRACKER: b"300\n"}, 300),
    "the tracked of two": ({rank("iter_0000100"): 1, rank("iter_0000200"): 2, TRACKER: b"100"}, 1),
    "pipeline of one": ({rank("iter_0000100", "mp_rank_00_000"): 4}, 4),
    "ranks at the top": ({rank(""): 5}, 5),
    "folder in a folder": ({"top/" + rank("release"): 6, "top/" + TRACKER: b"release"}, 6),
}


@pytest.mark.parametrize("case", TREES)
def test_folders_and_zips_of_them(tmp_path, empty, case):
    files, expected = TREES[case]
    files = {k: v if isinstance(v, bytes) else checkpoint_bytes(v) for k, v in files.items()}
    assert iteration(write_folder(tmp_path / "folder", files), empty) == expected
    assert iteration(write_zip(tmp_path / "zip", files), empty) == expected


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_itself(tmp_path, empty, legacy):
    path = tmp_path / "model_optim_rng.pt"
    path.write_bytes(checkpoint_bytes(3, legacy))
    assert iteration(path, empty) == 3


BAD_TREES = {
    "nothing": ({"README.md": b"no"}, ["mp_rank_00"]),
    "another name": ({"release/mp_rank_00/model.pt": 1}, ["mp_rank_00"]),
    "two without a tracker": (
        {rank("iter_0000100"): 1, rank("iter_0000200"): 2},
        ["iter_0000100", "iter_0000200", TRACKER],
    ),
    "tracker of what is not there": (
        {rank("iter_0000100"): 1, TRACKER: b"200"},
        [TRACKER, "not there"],
    ),
    "tracker that leads out": ({rank("release"): 1, TRACKER: b"../release"}, ["not there"]),
    "one rank in two folders": (
        {rank("release", "mp_rank_00_000"): 1, rank("release"): 1},
        ["mp_rank_00", "mp_rank_00_000", "one rank"],
    ),
}


@pytest.mark.parametrize("case", BAD_TREES)
def test_folders_and_zips_without_one_whole_checkpoint(tmp_path, empty, case):
    files, parts = BAD_TREES[case]
    files = {k: v if isinstance(v, bytes) else checkpoint_bytes(v) for k, v in files.items()}
    with one_line_error(tmp_path, *parts):
        open_checkpoint(write_folder(tmp_path / "folder", files), empty)
    if case not in ("nothing", "another name"):  # such a zip could be of torch.save
        with one_line_error(tmp_path, *parts):
            open_checkpoint(write_zip(tmp_path / "zip", files), empty)


def test_a_zip_without_the_member(tmp_path, empty):
    source = write_zip(tmp_path / "zip", {"release/README.md": b"nothing"})
    with one_line_error(source, "neither a release"):
        open_checkpoint(source, empty)


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "C:\\evil", "a\\..\\evil"])
def test_members_that_lead_out_are_refused(tmp_path, empty, name):
    source = tmp_path / "release.zip"
    write_zip(source, {rank("release"): checkpoint_bytes(), name: b"evil"})
    with one_line_error("refused", "leads out"):
        open_checkpoint(source, empty)
    assert tree(tmp_path) == ["empty", "release.zip"]


def test_links_and_duplicates_and_encryption_are_refused(tmp_path, empty):
    source = tmp_path / "release.zip"
    link = zipfile.ZipInfo(rank("release"))
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with one_line_error("symbolic link"):
        open_checkpoint(source, empty)
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr(rank("release"), checkpoint_bytes(1))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(rank("release"), checkpoint_bytes(2))
    with one_line_error("two members"):
        open_checkpoint(source, empty)
    content = bytearray(write_zip(source, {rank("release"): checkpoint_bytes()}).read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    source.write_bytes(content)
    with one_line_error("encrypted"):
        open_checkpoint(source, empty)


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "\x1b[2J", "x" * 2000])
def test_members_of_odd_names_are_refused(tmp_path, empty, name):
    source = write_zip(tmp_path / "release.zip", {f"{name}/{rank('release')}": checkpoint_bytes()})
    with one_line_error("refused: the zip has a member called"):
        open_checkpoint(source, empty)


def test_a_zip_that_takes_memory_to_unpack_is_refused(tmp_path, empty):
    source = tmp_path / "release.zip"
    content = bytearray(
        write_zip(source, {rank("release"): checkpoint_bytes()}, zipfile.ZIP_LZMA).read_bytes()
    )
    properties = content.index(b"\x05\x00\x5d", content.index(b".pt")) + 2
    struct.pack_into("<I", content, properties + 1, 0xFFFFFFFF)  # bytes of LZMA's dictionary
    source.write_bytes(content)
    with one_line_error("refused", str(0xFFFFFFFF)):
        open_checkpoint(source, empty)


def test_a_zip_bomb_is_refused(tmp_path):
    source = tmp_path / "release.zip"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    write_zip(source, {rank("release"): bytes(1 << 25)}, zipfile.ZIP_DEFLATED)
    with one_line_error("refused", str(1 << 25)):
        open_checkpoint(source, scratch)
    # One that claims to have been compressed less, which its file has no room for.
    content = bytearray(source.read_bytes())
    struct.pack_into("<I", content, content.rindex(b"PK\x01\x02") + 20, 1 << 24)
    source.write_bytes(content)
    with one_line_error("truncated"):
        open_checkpoint(source, scratch)
    # One that hides its size: the table claims fewer bytes than there are.
    write_zip(source, {rank("release"): checkpoint_bytes()}, zipfile.ZIP_DEFLATED)
    content = bytearray(source.read_bytes())
    struct.pack_into("<I", content, content.rindex(b"PK\x01\x02") + 24, 100)
    source.write_bytes(content)
    with one_line_error("damaged"):
        open_checkpoint(source, scratch)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_truncated_and_damaged_zips(tmp_path, method):
    source, scratch = tmp_path / "release.zip", tmp_path / "scratch"
    scratch.mkdir()
    files = {rank("release"): checkpoint_bytes(7, legacy=True), TRACKER: b"release"}
    content = write_zip(source, files, method).read_bytes()
    for size in (*range(0, len(content), 97), len(content) - 1):
        source.write_bytes(content[:size])
        with one_line_error(source):
            open_checkpoint(source, scratch)
    rng = random.Random(0)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        end = archive.getinfo(rank("release")).compress_size
    for _ in range(100):  # a bit of the member's data, which is after its name
        damaged = bytearray(content)
        damaged[rng.randrange(100, end)] ^= 1 << rng.randrange(8)
        source.write_bytes(damaged)
        with one_line_error("damaged"):
            open_checkpoint(source, scratch)


def test_what_cannot_be_read(tmp_path, empty):
    with one_line_error(tmp_path / "missing.zip", "No such file"):
        open_checkpoint(tmp_path / "missing.zip", empty)
    (tmp_path / "nothing.zip").touch()
    with one_line_error(tmp_path / "nothing.zip", "empty"):
        open_checkpoint(tmp_path / "nothing.zip", empty)
    with one_line_error(empty, "mp_rank_00"):
        open_checkpoint(empty, empty)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_refused(tmp_path, empty):
    os.mkfifo(tmp_path / "pipe")
    with one_line_error("no regular file"):
        open_checkpoint(tmp_path / "pipe", empty)


def test_a_zip_of_its_first_bytes_is_refused(tmp_path, empty):
    (tmp_path / "zip").write_bytes(b"PK\x03\x04")
    with one_line_error("the zip is truncated or damaged"):
        open_checkpoint(tmp_path / "zip", empty)


def test_a_full_disk_is_told_before_unpacking(tmp_path, empty, monkeypatch):
    source = tmp_path / "release.zip"
    write_zip(source, {rank("release"): checkpoint_bytes()}, zipfile.ZIP_DEFLATED)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with one_line_error("1000 bytes free"):
        open_checkpoint(source, empty)
