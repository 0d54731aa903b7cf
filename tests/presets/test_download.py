import functools
import gzip
import json
import pathlib
import random
import socket
import time

import pytest
from http_server import Fault, serving

from keras_megatron.presets import download as download_module
from keras_megatron.presets.download import CHUNK, DownloadError
from keras_megatron.presets.partial_file import record_file

pytestmark = pytest.mark.backend_independent

BODY = random.Random(0).randbytes(5 * CHUNK)
KEPT = 3 * CHUNK  # of a broken download; what is less than a chunk is lost
download = functools.partial(download_module.download, pause=0.01)


@pytest.fixture
def server():
    with serving(BODY) as server:
        yield server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.zip"


def leave_part(server, path, size):
    """Have a download break after `size` bytes."""
    server.faults = [Fault(cut_after=size)]
    with pytest.raises(DownloadError):
        download(server.url, path, attempts=1)
    server.requests.clear()


def part(path):
    return path.with_name(path.name + ".part")


def names(path):
    return sorted(entry.name for entry in path.parent.iterdir())


def test_file_arrives_with_its_record(server, path):
    download(server.url, path)
    assert path.read_bytes() == BODY
    assert names(path) == ["file.zip", "file.zip.json"]
    record = json.loads(record_file(path).read_text())
    assert record == {
        "url": server.url,
        "etag": '"first"',
        "last_modified": None,
        "bytes": len(BODY),
    }


def test_cut_connection_is_resumed_within_one_call(server, path):
    server.faults = [Fault(cut_after=2 * CHUNK), Fault(cut_after=CHUNK + 5)]
    download(server.url, path)
    assert path.read_bytes() == BODY
    begins = [begin for begin, _ in server.bodies]
    assert begins == [0, 2 * CHUNK, 3 * CHUNK]


def test_next_call_asks_for_the_rest_only(server, path):
    leave_part(server, path, KEPT)
    assert part(path).read_bytes() == BODY[:KEPT]
    assert not path.exists()
    download(server.url, path)
    assert path.read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [f"bytes={KEPT}-"]


def test_last_modified_validates_where_there_is_no_etag(server, path):
    server.headers = {"Last-Modified": "Mon, 01 Jun 2020 00:00:00 GMT", "ETag": 'W/"weak"'}
    leave_part(server, path, KEPT)
    download(server.url, path)
    assert path.read_bytes() == BODY
    assert server.bodies[-1] == [KEPT, len(BODY) - KEPT]


def test_part_without_validator_starts_anew(server, path):
    server.headers = {}
    leave_part(server, path, KEPT)
    download(server.url, path)
    assert path.read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [None]


def test_server_that_ignores_ranges_sends_all(server, path):
    leave_part(server, path, KEPT)
    server.faults = [Fault(ignore_range=True)]
    download(server.url, path)
    assert path.read_bytes() == BODY
    assert server.requests[0][1] == f"bytes={KEPT}-"


@pytest.mark.parametrize("honest", [True, False])
def test_changed_file_is_not_mixed_with_the_old_part(server, path, honest, monkeypatch):
    """`honest` servers honour If-Range; of others the answer's ETag tells."""
    leave_part(server, path, KEPT)
    server.body = BODY[::-1]
    server.headers = {"ETag": '"second"'}
    if not honest:
        monkeypatch.setattr("http_server._Handler._begin", lambda self, asked: KEPT)
    download(server.url, path)
    assert path.read_bytes() == BODY[::-1]
    assert len(server.requests) == (1 if honest else 2)


def test_part_longer_than_the_file_is_dropped(server, path):
    leave_part(server, path, KEPT)
    server.body = BODY[:1000]
    download(server.url, path)  # the server keeps its ETag and answers 416
    assert path.read_bytes() == BODY[:1000]


def test_part_of_another_address_is_not_used(server, path):
    leave_part(server, path, KEPT)
    download(f"{server.url}/other", path)
    assert [asked for _, asked in server.requests] == [None]


def test_complete_part_is_published_without_asking(server, path):
    """As left by a process that is killed just before the renaming."""
    leave_part(server, path, KEPT)
    part(path).write_bytes(BODY)
    download(server.url, path)
    assert path.read_bytes() == BODY
    assert server.requests == []


def test_short_body_is_an_error_and_is_kept(server, path):
    server.faults = [Fault(promise=10)] * 3
    with pytest.raises(DownloadError, match="broke after 327680 of 327690 bytes"):
        download(server.url, path, attempts=1)
    assert not path.exists()
    assert part(path).stat().st_size == len(BODY)


def test_piece_that_ends_early_is_followed_by_the_next(server, path):
    leave_part(server, path, KEPT)
    server.faults = [Fault(promise=-10)]
    download(server.url, path)
    assert path.read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [
        f"bytes={KEPT}-",
        f"bytes={len(BODY) - 10}-",
    ]


def test_chunked_answer_without_length(server, path):
    server.faults = [Fault(chunked=True)]
    download(server.url, path)
    assert path.read_bytes() == BODY


def test_chunked_answer_that_breaks(server, path):
    server.faults = [Fault(chunked=True, cut_after=1000)]
    with pytest.raises(DownloadError, match="connection broke"):
        download(server.url, path, attempts=1)
    assert not path.exists()


def test_server_error_is_retried(server, path):
    server.faults = [Fault(status=500), Fault(status=503)]
    download(server.url, path)
    assert path.read_bytes() == BODY
    assert len(server.requests) == 3


def test_server_error_that_stays(server, path):
    server.faults = [Fault(status=503)] * 9
    with pytest.raises(DownloadError, match="503"):
        download(server.url, path, attempts=3)
    assert len(server.requests) == 3


@pytest.mark.parametrize(("said", "waited"), [("7", 7), ("9999", 120), ("soon", 1), ("-3", 1)])
def test_server_says_when_to_ask_again(server, path, monkeypatch, said, waited):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.faults = [Fault(status=429, retry_after=said)]
    download(server.url, path, pause=1.0)
    assert waits == [waited]
    assert path.read_bytes() == BODY


def test_web_page_leaves_the_part(server, path):
    """As a network answers that asks to log in."""
    leave_part(server, path, KEPT)
    file, server.body = server.body, b"<html>welcome</html>"
    server.headers = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(DownloadError, match="a web page, not the file"):
        download(server.url, path)
    server.body, server.headers = file, {"ETag": '"first"'}
    download(server.url, path)
    assert path.read_bytes() == BODY
    assert server.requests[-1] == ("/", f"bytes={KEPT}-")


def test_compressed_although_not_asked_for(server, path):
    file, server.body = server.body, gzip.compress(server.body)
    server.headers |= {"Content-Encoding": "gzip"}
    download(server.url, path)
    assert path.read_bytes() == file
    assert len(server.requests) == 1


def test_malformed_redirect(server, path):
    server.faults = [Fault(location="http://[::1")]
    with pytest.raises(DownloadError, match="Invalid IPv6 URL"):
        download(server.url, path)


@pytest.mark.parametrize("wrong", [{"etag": 5}, {"url": None}, {"bytes": "many"}])
def test_edited_record_of_a_part_is_not_used(server, path, wrong):
    leave_part(server, path, KEPT)
    record = path.with_name(path.name + ".part.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), **wrong}))
    download(server.url, path)
    assert path.read_bytes() == BODY
    assert server.requests[-1] == ("/", None)


def test_not_found_is_not_retried(server, path):
    server.faults = [Fault(status=404)]
    with pytest.raises(DownloadError, match="the server answered 404 Not Found"):
        download(server.url, path)
    assert len(server.requests) == 1
    assert names(path) == []


def test_redirect_is_followed_and_resumed(server, path):
    leave_part(server, path, KEPT)
    server.faults = [Fault(location="/elsewhere/file")]
    download(server.url, path)
    assert path.read_bytes() == BODY
    assert server.requests == [("/", f"bytes={KEPT}-"), ("/elsewhere/file", f"bytes={KEPT}-")]


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1/file"])
def test_only_http_even_after_a_redirect(server, path, address):
    with pytest.raises(DownloadError, match="No connection adapters"):
        download(address, path)
    server.faults = [Fault(location=address)]
    with pytest.raises(DownloadError, match="No connection adapters"):
        download(server.url, path)
    assert names(path) == []


def test_endless_redirect(server, path):
    server.faults = [Fault(location="/")] * 99
    with pytest.raises(DownloadError, match="30 redirects"):
        download(server.url, path)


def test_silent_server_times_out_and_is_resumed(server, path):
    server.faults = [Fault(stall_after=2 * CHUNK)]
    download(server.url, path, timeout=(5.0, 1.0))
    assert path.read_bytes() == BODY
    assert len(server.bodies) == 2
    server.faults = [Fault(stall_after=0)]
    with pytest.raises(DownloadError, match="fell silent after 0 of 327680 bytes"):
        download(server.url, path, timeout=(5.0, 1.0), attempts=1)


def test_progress_is_shown_once_there_is_some(server, path, capsys):
    server.faults = [Fault(status=404)]
    with pytest.raises(DownloadError):
        download(server.url, path)
    assert capsys.readouterr() == ("", "")
    download(server.url, path)
    out, err = capsys.readouterr()
    assert out == ""
    assert "327.7/327.7 kB" in err


def test_refused_connection_fails_at_once(path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(DownloadError, match=r"no connection: .*refused"):
            download(address, path, pause=60)


def test_unknown_host_fails_at_once(path):
    with pytest.raises(DownloadError, match=r"no connection: Failed to resolve 'nowhere.invalid'"):
        download("http://nowhere.invalid/file", path, pause=60)


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk_is_an_os_error(server, path):
    part(path).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        download(server.url, path)
    assert not path.exists()


def test_errors_are_one_line(server, path):
    for url in ("http://nowhere.invalid/", "http://127.0.0.1:1/", "http://[bad/", "nothing"):
        with pytest.raises(DownloadError) as error:
            download(url, path)
        assert "\n" not in str(error.value)
        assert 10 < len(str(error.value)) < 120
