"""tools/convert_ngc.py as a command: exit status, one line on stderr, nothing left."""

import os
import pathlib
import subprocess
import sys

import hostile
import pytest
import release_format
from checkpoint_helpers import tree

TOOL = pathlib.Path(__file__).parents[2] / "tools" / "convert_ngc.py"


def run(*arguments, limit=None, **environment):
    """Runs the tool in a process of its own; `limit` is the longest file that it may make."""
    code = (
        "import resource, runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "limit = int(sys.argv.pop())\n"
        "limit and resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    path = os.pathsep.join([str(TOOL.parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code, str(TOOL), *map(str, arguments), str(limit or 0)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
        check=False,
    )


@pytest.fixture
def source(tmp_path, reference):
    path = tmp_path / "release.zip"
    release_format.write_release_zip(path, reference)
    return path


def test_converts(tmp_path, source, vocabulary):
    options = ("--layer-norm-epsilon", "1e-12", "--mlp-activation", "gelu_approximate")
    done = run(source, tmp_path / "out", "--vocabulary", vocabulary, "--num-heads", "2", *options)
    assert done.returncode == 0, done.stderr
    assert "2 attention heads (as asked for)" in done.stdout
    assert "not converted" not in done.stdout
    config = (tmp_path / "out" / "config.json").read_text()
    assert '"layer_norm_epsilon": 1e-12' in config
    assert '"activation": "gelu_approximate"' in config


def expect_failure(done, *parts):
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.backend_independent
def test_bad_input(tmp_path):
    marker = tmp_path / "it ran"
    evil = tmp_path / "evil.pt"
    evil.write_bytes(hostile.as_stream(hostile.running_pickles(marker)["os.system"]))
    expect_failure(run(evil, tmp_path / "out"), "evil.pt", "refused", "os.system")
    assert tree(tmp_path) == ["evil.pt"]


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "arguments", [(), ("one",), ("a", "b", "--num-heads", "many"), ("a", "b", "c")]
)
def test_usage(arguments):
    expect_failure(run(*arguments), "--help")


@pytest.mark.backend_independent
def test_a_backend_that_is_none(tmp_path):
    expect_failure(run("in.zip", tmp_path / "out", KERAS_BACKEND="foo"), "foo")


def test_a_disk_that_takes_no_more(tmp_path, source, vocabulary):
    output = tmp_path / "out" / "preset"
    done = run(source, output, "--vocabulary", vocabulary, limit=100_000)
    expect_failure(done, "no room", "File too large")
    assert tree(tmp_path) == ["release.zip"]
