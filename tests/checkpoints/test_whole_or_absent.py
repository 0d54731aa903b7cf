"""Two processes at once, a full disk, kill -9: what is made is whole, or is not there."""

import os
import random
import sys
import time

import conversions
import pytest
import release_format
from checkpoint_helpers import make_reference, one_line_error, tree
from conversions import FORMATS, Conversion, small_disk, small_files

from keras_megatron.checkpoints import staging
from keras_megatron.checkpoints.staging import staged_folder

pytestmark = [
    pytest.mark.backend_independent,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's processes"),
]
KILLS = 10
formats = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small release; it is unpacked beside the output."""
    conversions.start_server()
    path = tmp_path_factory.mktemp("source") / "release.zip"
    release_format.write_release_zip(path, make_reference(num_hidden_layers=2), compressed=True)
    return path


@pytest.fixture
def place(tmp_path):
    """Where the output comes to be, with nothing else beside it."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def check_refusal(error, place):
    """That an error is of one line, and nothing is left."""
    assert error
    assert "\n" not in error
    assert tree(place) == []


# === Two at once ===


@formats
def test_two_processes_at_one_place(tmp_path, place, source, vocabulary, name):
    for number in range(2):
        output = place / str(number)
        both = [Conversion(tmp_path / str(i), name, source, output, vocabulary) for i in range(2)]
        results = [conversion.result() for conversion in both]
        assert sorted(status for status, _, _ in results) == [0, 2]  # a whole one was loaded there
        (error,) = (error for _, error, _ in results if error)
        assert "\n" not in error
        assert error.startswith(f"{output} exists already")
        assert sorted(os.listdir(place)) == [str(i) for i in range(number + 1)]


def test_the_slower_one_says_that_the_place_is_taken(place):
    output = place / "output"
    with one_line_error(output, "another process made it"), staged_folder(output) as slow:
        (slow / "file").write_text("slow")
        with staged_folder(output) as quick:
            (quick / "file").write_text("quick")
    assert tree(place) == ["output", "output/file"]
    assert (output / "file").read_text() == "quick"


# === A full disk ===


def sizes_of_disks(name, source, tmp_path, vocabulary):
    """Sizes from nothing to a bit more than what is needed."""
    output = tmp_path / "whole" / "output"
    output.parent.mkdir()
    assert Conversion(tmp_path / "r", name, source, output, vocabulary).result()[0] == 0
    needed = sum(path.stat().st_size for path in output.rglob("*"))
    rng = random.Random(name)
    return [needed // 8, needed, *(rng.randrange(1, 3 * needed) for _ in range(4)), 5 * needed]


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("keras", small_disk),
        ("keras", small_files),
        ("transformers", small_disk),
        ("megatron", small_disk),
    ],
)
def test_a_disk_that_is_full_at_any_byte(tmp_path, place, source, vocabulary, name, limit):
    if limit is small_disk and not conversions.can_have_small_disks(place):
        pytest.skip("this user may not mount file systems")
    statuses = set()
    for size in sizes_of_disks(name, source, tmp_path, vocabulary):
        output = place / "output"
        prepare = (limit, place, size)
        conversion = Conversion(tmp_path / "r", name, source, output, vocabulary, prepare=prepare)
        status, error, left = conversion.result()
        statuses.add(status)
        if status == 0:
            assert left == ["output"]
            if limit is small_files:
                os.rename(output, tmp_path / f"kept {size}")
        else:
            assert (status, left) == (2, [])
            check_refusal(error, place)
    assert statuses == {0, 2}


def test_a_disk_that_another_process_fills(tmp_path, place, source, vocabulary):
    """HDF5 crashes the process then: even so nothing half-written is at the place."""
    statuses = set()
    for size in (1 << 14, 1 << 16):
        output = place / "output"
        prepare = (small_files, place, size, True)
        arguments = (source, output, vocabulary)
        conversion = Conversion(tmp_path / "r", "keras", *arguments, prepare=prepare)
        statuses.add(conversion.result()[0])
        assert not output.exists()
    assert 0 not in statuses
    assert Conversion(tmp_path / "r", "keras", *arguments).result()[::2] == (0, ["output"])


# === kill -9 ===


@formats
def test_kill_at_any_moment(tmp_path, place, source, vocabulary, name):
    output = place / "output"
    arguments = (tmp_path / "r", name, source, output, vocabulary)
    for number in range(2):  # the first one may have to wait for the server
        start = time.monotonic()
        assert Conversion(*arguments).result()[0] == 0
        duration = time.monotonic() - start
        os.rename(output, tmp_path / f"unhindered {number}")
    rng, scratch, finished = random.Random(0), 0, 0
    for number in range(KILLS):
        conversion = Conversion(*arguments)
        if number % 2:
            time.sleep(duration * (number + rng.random()) / KILLS)
        else:  # once it writes
            while conversion.process.is_alive() and not os.listdir(place):
                time.sleep(0.001)
            time.sleep(rng.random() * 0.01)
        conversion.kill()
        scratch += any(path.startswith(".output.") for path in os.listdir(place))
        if output.exists():
            FORMATS[name].load(output)
            os.rename(output, tmp_path / f"finished {number}")
            finished += 1
    print(f"{duration:.1f} s; {scratch} of {KILLS} left a scratch folder, {finished} were whole")
    assert scratch > 1  # some were killed while they worked
    assert Conversion(*arguments).result()[::2] == (0, ["output"])
    FORMATS[name].load(output)


# === What the killed ones leave ===


def test_scratch_folders_in_use_are_kept(place):
    output = place / "output"
    with one_line_error("exists already"), staged_folder(output) as first:
        staging.remove_abandoned(output, place)
        with staged_folder(place / "other"):
            assert first.is_dir()
        with staged_folder(output):
            assert first.is_dir()
        (first / "file").touch()
        (output / "file").touch()
    assert tree(place) == ["other", "output", "output/file"]


def test_only_scratch_folders_of_this_output_are_removed(place):
    kept = (".output.mine", ".outputs.abcdefgh", ".other.abcdefgh", "output.abcdefgh")
    begun = ".output.a_begun1"  # by a process that was killed before it had a lock
    for name in (*kept, ".output.abcdefgh", begun):
        (place / name).mkdir()
        if name not in (".output.mine", begun):
            (place / name / "keras_megatron.lock").touch()
    (place / begun / "keras_megatron.lock.new").touch()
    (place / ".output.file").touch()
    (place / ".output.link").symlink_to(place / ".other.abcdefgh")
    with staged_folder(place / "output"):
        pass
    names = {*kept, ".output.file", ".output.link", "output"}
    assert {path.name for path in place.iterdir()} == names


def test_without_locks_it_works_as_well(place, monkeypatch):
    monkeypatch.setattr(staging, "fcntl", None)
    with staged_folder(place / "output") as folder:
        (folder / "file").touch()
    assert tree(place) == ["output", "output/file"]
