"""Pretraining over two devices (four on TensorFlow): as on one, and after kill -9 too."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import keras_megatron
from keras_megatron import MegatronBertMaskedLM

BACKEND = keras.config.backend()
SETTINGS = """
tokens = "{corpus}"
held_out = "{corpus}"
vocabulary = "{vocabulary}"
steps = 12
num_layers = 2
num_heads = 2
hidden_dim = 32
max_sequence_length = 32
sequence_length = 32
batch_size = 4
learning_rate = 3e-3
dropout = 0.0
dtype = "float32"
"""
DEVICES = (
    "from keras_megatron.parallel.tensorflow_engine import make_cpu_devices; make_cpu_devices(4); "
)
MAIN = "from keras_megatron.cli import main; main()"


def start(settings, output, sharded: bool) -> subprocess.Popen:
    start_module, environment, split = ["-c", MAIN], {}, ()
    if sharded:
        split = ("--model-parallel", "2", "--data-parallel", "2")
    if sharded and BACKEND == "torch":
        split = ("--model-parallel", "2")
        start_module = [
            *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("-m", "keras_megatron"),
        ]
    elif sharded and BACKEND == "jax":
        split = ("--model-parallel", "2")
        environment |= {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            # Devices that are threads of few cores may wait for each other for ever.
            "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
            "NPROC": "8",  # of which XLA takes the number of its threads
        }
    elif sharded:
        start_module = ["-c", DEVICES + MAIN]
    options = ("--output", output, "--log-every", "1", "--save-every", "2", *split)
    root = str(pathlib.Path(keras_megatron.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, *start_module, "pretrain", str(settings), *map(str, options)],
        env={**os.environ, **environment, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen) -> None:
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error.decode()[-3000:]


def kill(process: subprocess.Popen) -> None:
    """Kill -9, the processes that torchrun started too: they are in sessions of their own."""
    tasks = pathlib.Path(f"/proc/{process.pid}/task").iterdir()
    children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    for pid in (process.pid, *children):
        os.kill(pid, signal.SIGKILL)


def losses(output) -> np.ndarray:
    lines = (output / "log.jsonl").read_text("utf-8").splitlines()
    return np.array([[line["step"], line["loss"]] for line in map(json.loads, lines)])


@pytest.fixture(scope="module")
def runs(corpus, tokenizer, tmp_path_factory):
    """Folders of a run on one device, of a sharded one, and of one that was killed once."""
    folder = tmp_path_factory.mktemp("runs")
    vocabulary = folder / "vocabulary.txt"
    vocabulary.write_text("\n".join(tokenizer.get_vocabulary()) + "\n", encoding="utf-8")
    settings = folder / "run.toml"
    settings.write_text(SETTINGS.format(corpus=corpus, vocabulary=vocabulary), encoding="utf-8")
    finish(start(settings, folder / "one", sharded=False))
    finish(start(settings, folder / "sharded", sharded=True))
    process = start(settings, folder / "killed", sharded=True)
    while process.poll() is None and not list((folder / "killed").glob("checkpoints/step_*4.s*")):
        time.sleep(0.01)
    kill(process)
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()[-3000:]
    assert len(losses(folder / "killed")) < 12
    finish(start(settings, folder / "killed", sharded=True))
    return folder


def test_losses_are_those_of_one_device(runs):
    one, sharded = losses(runs / "one"), losses(runs / "sharded")
    np.testing.assert_allclose(sharded, one, atol=2e-4)
    assert np.abs(np.diff(one[:, 1])).max() > 1e-2  # what another order of batches would show


def test_what_was_killed_goes_on_as_if_it_had_not_been(runs):
    np.testing.assert_allclose(losses(runs / "killed"), losses(runs / "sharded"), atol=1e-5)


def test_files_are_whole_and_written_once(runs):
    for name in ("sharded", "killed"):
        files = {path.name for path in (runs / name).iterdir()} - {".lock"}
        assert files == {path.name for path in (runs / "one").iterdir()} - {".lock"}
        states = {path.name for path in (runs / name / "checkpoints").iterdir()}
        assert states == {path.name for path in (runs / "one" / "checkpoints").iterdir()}
        assert not list((runs / name).rglob("*.partial"))
        events = list((runs / name / "tensorboard").iterdir())
        assert len(events) == (2 if name == "killed" else 1)
    found = [json.loads((runs / name / "metrics.json").read_text()) for name in ("one", "sharded")]
    assert found[1]["held_out"]["mlm_loss"] == pytest.approx(found[0]["held_out"]["mlm_loss"], 1e-3)
    weights = [
        MegatronBertMaskedLM.from_preset(str(runs / name / "preset")).get_weights()
        for name in ("sharded", "killed")
    ]
    for whole, killed in zip(*weights, strict=True):
        np.testing.assert_allclose(killed, whole, atol=1e-5)
