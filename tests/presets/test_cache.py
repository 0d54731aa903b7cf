import errno
import hashlib
import json
import os
import pathlib

import pytest
import release_format
from http_server import Fault
from tiny_release import FILE, NAME, hf_model, names

import keras_megatron
from keras_megatron.presets import cache as cache_module
from keras_megatron.presets.cache import converted_weights
from keras_megatron.presets.registry import find

pytestmark = pytest.mark.backend_independent

PATH = "/nvidia/megatron_bert_test/versions/v0.1_uncased/zip"


@pytest.fixture
def quick(monkeypatch):
    """No waiting between the attempts of a download."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


# === What is there after the first use ===


def test_first_use_downloads_and_converts(tiny, server, cache, release_zip):
    folder = converted_weights(tiny)
    assert folder == cache / "format_2"
    assert names(cache) == ["format_2"]
    assert {"config.json", "model.weights.h5", "tokenizer.json"} <= set(names(folder))
    assert [path for path, _ in server.requests] == [PATH]
    source = json.loads((folder / "source.json").read_text())
    assert source == {
        "format": 2,
        "keras_megatron": keras_megatron.__version__,
        "file": FILE,
        "url": server.url + PATH,
        "etag": '"first"',
        "last_modified": None,
        "bytes": release_zip.stat().st_size,
        "sha256": hashlib.sha256(release_zip.read_bytes()).hexdigest(),
    }


def test_second_use_touches_neither_network_nor_lock(tiny, server, monkeypatch):
    first = converted_weights(tiny)
    server.requests.clear()
    monkeypatch.setattr("filelock.FileLock", None)
    assert converted_weights(tiny) == first
    assert server.requests == []


def test_download_is_kept_on_request(tiny, server, cache, monkeypatch):
    monkeypatch.setenv("KERAS_MEGATRON_KEEP_DOWNLOADS", "1")
    converted_weights(tiny)
    assert names(cache) == ["format_2", FILE, FILE + ".json"]


def test_zip_put_by_hand_is_used_and_kept(tiny, server, cache, release_zip):
    cache.mkdir(parents=True)
    (cache / "from a friend.zip").write_bytes(release_zip.read_bytes())
    folder = converted_weights(tiny)
    assert server.requests == []
    assert names(cache) == ["format_2", "from a friend.zip"]
    source = json.loads((folder / "source.json").read_text())
    assert source["file"] == "from a friend.zip"
    assert "url" not in source


def test_zip_put_by_hand_beside_an_old_record_is_kept(tiny, server, cache, release_zip):
    """The record of a download that was interrupted, or whose zip was replaced."""
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(release_zip.read_bytes())
    record = {"url": server.url + PATH, "etag": '"first"', "last_modified": None, "bytes": 17}
    (cache / f"{FILE}.json").write_text(json.dumps(record))
    for name in (f"{FILE}.part", f"{FILE}.part.json"):
        (cache / name).write_text("{}")
    folder = converted_weights(tiny)
    assert names(cache) == ["format_2", FILE]
    assert "url" not in json.loads((folder / "source.json").read_text())


def test_newer_format_converts_again(tiny, server, cache, monkeypatch):
    old = converted_weights(tiny)
    monkeypatch.setattr(cache_module, "FORMAT", 3)
    assert converted_weights(tiny) == cache / "format_3"
    assert old.is_dir()
    assert len(server.requests) == 2


# === Errors ===


def test_incomplete_cache(tiny, cache):
    (cache / "format_2").mkdir(parents=True)
    (cache / "format_2" / "config.json").touch()
    with pytest.raises(ValueError, match=r"lacks model\.weights\.h5, .*to convert again") as info:
        converted_weights(tiny)
    assert str(cache / "format_2") in str(info.value)


def test_cache_whose_name_is_too_long(tiny, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", "/" + "x" * 300)
    assert "name too long" in error_of(tiny)


def error_of(preset):
    with pytest.raises(ValueError, match=preset.name) as info:
        converted_weights(preset)
    message = str(info.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["megatron_bert_1_3b_uncased", "megatron_bert_3_9b_uncased"])
def test_unreleased_weights(name, cache):
    message = error_of(find(name))
    assert message.startswith(f"no weights were released for {name}: pass load_weights=False")
    assert not cache.parent.exists()


def test_offline_says_what_to_fetch_and_what_to_run(tiny, cache, monkeypatch):
    monkeypatch.setenv("KERAS_MEGATRON_BASE_URL", "http://nowhere.invalid")
    message = error_of(tiny)
    assert "no connection" in message
    assert f"http://nowhere.invalid{PATH} " in message
    assert "`keras-megatron convert FILE.zip DIR --vocabulary uncased`" in message
    assert str(cache / FILE) in message
    assert names(cache) == []


def test_missing_on_the_server(tiny, server, cache):
    server.faults = [Fault(status=404)]
    assert "404 Not Found" in error_of(tiny)
    assert names(cache) == []


def test_interrupted_download_goes_on_at_the_next_use(tiny, server, cache, quick):
    server.faults = [Fault(cut_after=1 << 16)] + [Fault(status=500)] * 4
    assert "500" in error_of(tiny)
    assert names(cache) == [FILE + ".part", FILE + ".part.json"]
    converted_weights(tiny)
    assert server.bodies[-1][0] == 1 << 16
    assert names(cache) == ["format_2"]


def test_answer_that_is_no_zip(tiny, server, cache):
    whole, server.body = server.body, b"<html>Please log in</html>"
    assert "what the server sent is not a zip" in error_of(tiny)
    assert names(cache) == []
    server.body = whole
    converted_weights(tiny)


def test_truncated_zip_put_by_hand(tiny, server, cache, release_zip):
    cache.mkdir(parents=True)
    (cache / "release.zip").write_bytes(release_zip.read_bytes()[:-100])
    assert f"to download {NAME} again remove {cache / 'release.zip'}" in error_of(tiny)
    assert names(cache) == ["release.zip"]


def test_zip_of_another_model(tiny, server, cache):
    cache.mkdir(parents=True)
    release_format.write_release_zip(cache / "other.zip", hf_model(intermediate_size=48))
    message = error_of(tiny)
    assert f"not the zip of {NAME}: intermediate_dim is 48 instead of 32" in message
    assert names(cache) == ["other.zip"]


def test_two_zips(tiny, server, cache):
    cache.mkdir(parents=True)
    for name in ("a.zip", "b.zip"):
        (cache / name).touch()
    assert "more than one zip (a.zip, b.zip)" in error_of(tiny)


def test_cache_that_cannot_be_written(tiny, server, cache, monkeypatch):
    home = pathlib.Path(os.environ["KERAS_HOME"])
    home.write_text("a file where the folder should be")
    message = error_of(tiny)
    assert str(cache) in message
    assert "KERAS_HOME" in message
    assert home.read_text() == "a file where the folder should be"


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no /dev/full here")
def test_disk_full_in_the_download(tiny, server, cache):
    cache.mkdir(parents=True)
    (cache / (FILE + ".part")).symlink_to("/dev/full")
    message = error_of(tiny)
    assert "No space left on device" in message
    assert "KERAS_HOME" in message
    assert str(cache) in message


def test_disk_full_in_the_conversion(tiny, server, cache, monkeypatch):
    def fill_disk(source, output, **options):
        pathlib.Path(output).mkdir()
        (pathlib.Path(output) / "model.weights.h5").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "convert_checkpoint", fill_disk)
        assert "No space left on device" in error_of(tiny)
    assert names(cache) == [FILE, FILE + ".json"]
    converted_weights(tiny)
    assert len(server.requests) == 1
    assert names(cache) == ["format_2"]
