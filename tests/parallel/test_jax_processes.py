"""JAX with two processes of two devices each: they do what one process without a mesh does."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import keras_megatron  # noqa: F401  (knows the classes in files)

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX")

HERE = pathlib.Path(__file__).parent
RUN = HERE / "jax_processes_run.py"
MESHES = ("two_by_two", "one_by_four", "four_by_one")


def run(folder: pathlib.Path, *checks: str) -> list[subprocess.CompletedProcess]:
    """Run checks of jax_processes_run.py on two processes."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(RUN), str(folder), *checks]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
        # What one run compiles the next one need not.
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(
            command, env={**environment, "KERAS_DISTRIBUTION_PROCESS_ID": str(process)}, **pipes
        )
        for process in range(2)
    ]
    done = []
    for process in started:
        try:
            output = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            for other in started:
                other.kill()
            raise
        done.append(subprocess.CompletedProcess(command, process.returncode, *output))
    return done


def results(folder: pathlib.Path) -> list[dict]:
    """Return what each process's checks returned."""
    return [json.loads((folder / f"{process}.json").read_text()) for process in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run of all checks."""
    folder = tmp_path_factory.mktemp("processes") / "run"
    for done in run(folder, *MESHES, "resumable:-1", "alone"):
        assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.mark.parity
@pytest.mark.parametrize("mesh", MESHES)
def test_it_is_what_one_process_does(folder, mesh, parity):
    alone = results(folder)[0]["alone"]
    assert len(alone["predicted"]) == 3  # which two devices do not divide
    for result in results(folder):
        for what, expected in alone.items():
            if what == "losses" or mesh == "two_by_two":
                found = result[mesh][what]
                parity(f"JAX, 2 processes, {mesh}: {what}", found, expected, 1e-5)


def test_each_device_has_its_share(folder):
    for result in results(folder):
        assert result["one_by_four"]["parts"] == [[16, 1, 4]] * 2


def test_random_numbers_are_shared(folder):
    first, second = (result["two_by_two"]["random"] for result in results(folder))
    assert first == second


def test_files_are_written_once_and_load_on_another_mesh(folder):
    for result in results(folder):
        assert result["two_by_two"]["left"] == []  # no temporary folder
        assert result["one_by_four"]["loaded"] == [True] * 3
        assert result["one_by_four"]["slots"]


def test_saved_weights_load_without_a_mesh(folder):
    values = [*np.load(folder / "w.npz").values()]
    loaded = keras.saving.load_model(folder / "checkpoint.keras")
    preset = type(loaded).from_preset(str(folder / "preset"))
    for model in (loaded, preset):
        for weight, value in zip(model.weights, values, strict=True):
            np.testing.assert_array_equal(weight.numpy(), value)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("batch", "was given another batch than others"),
        ("variable", "gives a variable of shape (56, 16) another value than others"),
    ],
)
def test_what_differs_between_processes_is_refused(folder, what, message):
    for result in results(folder):
        assert message in result["two_by_two"]["errors"][what]


def test_killed_worker_ends_the_other_and_the_run_resumes(folder):
    killed = folder.parent / "killed"
    survivor, lost = run(killed, "resumable:1")
    assert time.time() - float((killed / "killed_at").read_text()) < 60
    assert survivor.returncode != 0
    assert lost.returncode == -9
    assert "JaxRuntimeError" in survivor.stderr
    assert not list(killed.glob(".saving-*"))
    for done in run(killed, "resumable:-1"):
        assert done.returncode == 0, done.stderr[-5000:]
    for resumed, whole in zip(results(killed), results(folder), strict=True):
        losses = resumed["resumable:-1"]
        assert len(losses) == 6  # of the last two of three epochs
        np.testing.assert_allclose(losses, whole["resumable:-1"][3:], rtol=1e-6)
