"""Several processes that ask for one preset at once, and killed ones."""

import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from http_server import Fault
from tiny_release import FILE, names

import keras_megatron
from keras_megatron.presets import cache as cache_module
from keras_megatron.presets.cache import converted_weights

pytestmark = pytest.mark.backend_independent


def start(folder, **environment):
    """Start child.py."""
    here = pathlib.Path(__file__).parent
    root = pathlib.Path(keras_megatron.__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(here / "child.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_two_processes_at_once_download_and_convert_once(
    tiny, server, cache, tmp_path, monkeypatch, capsys
):
    """One of them is this one, which asks while the other is in the midst of its download."""
    server.faults = [Fault(stall_after=1 << 17)]
    child = start(tmp_path)
    wait_until(lambda: server.bodies, child)
    monkeypatch.setattr(cache_module, "convert_checkpoint", None)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        result = pool.submit(converted_weights, tiny)
        wait_until(lambda: "Waiting for another process" in capsys.readouterr().err, child)
        server.go_on.set()
        assert result.result(120) == cache / "format_2"
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert out.splitlines()[-1] == str(cache / "format_2")
    assert len(server.requests) == 1
    assert names(cache) == ["format_2"]


def test_killed_in_the_download(tiny, server, cache, tmp_path):
    server.faults = [Fault(stall_after=1 << 17)]
    child = start(tmp_path)
    part = cache / (FILE + ".part")
    # A file's last chunk may wait in the buffer of the one that writes.
    wait_until(lambda: part.exists() and part.stat().st_size >= 1 << 16, child)
    kill(child)
    assert not (cache / "format_2").exists()
    begin = part.stat().st_size
    converted_weights(tiny)
    assert server.bodies[-1] == [begin, len(server.body) - begin]
    assert names(cache) == ["format_2"]


def test_killed_in_the_conversion(tiny, server, cache, tmp_path):
    flag = tmp_path / "paused"
    child = start(tmp_path, PAUSE_IN_CONVERSION=str(flag))
    wait_until(flag.exists, child)
    kill(child)
    assert names(cache) == ["converting", FILE, FILE + ".json"]
    half = (cache / "converting" / "format_2" / "model.weights.h5").stat().st_size
    folder = converted_weights(tiny)
    assert len(server.requests) == 1
    assert names(cache) == ["format_2"]
    assert (folder / "model.weights.h5").stat().st_size > half
