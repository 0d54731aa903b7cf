"""Kill -9 at any moment: what goes on comes to the losses of a run that nothing stopped."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import keras_megatron
from keras_megatron import MegatronBertPretrainer
from keras_megatron.finetuning.training_state import load_progress

KILLS = 10 if keras.config.backend() == "torch" else 3  # the others compile after each
SETTINGS = """
tokens = "{corpus}"
vocabulary = "{vocabulary}"
steps = 60
num_layers = 1
num_heads = 2
hidden_dim = 32
max_sequence_length = 32
sequence_length = 32
batch_size = 4
learning_rate = 3e-3
dropout = 0.1
dtype = "float32"
"""


def written_settings(corpus, tokenizer, folder) -> pathlib.Path:
    vocabulary, settings = folder / "vocabulary.txt", folder / "run.toml"
    vocabulary.write_text("\n".join(tokenizer.get_vocabulary()) + "\n", encoding="utf-8")
    settings.write_text(SETTINGS.format(corpus=corpus, vocabulary=vocabulary), encoding="utf-8")
    return settings


def start(settings, output, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-c", "from keras_megatron.cli import main; main()", "pretrain"]
    options = ["--output", str(output), "--log-every", "1", "--save-every", "2", *more]
    root = str(pathlib.Path(keras_megatron.__file__).parents[1])
    return subprocess.Popen(
        [*command, str(settings), *options],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def losses(output) -> np.ndarray:
    lines = (output / "log.jsonl").read_text("utf-8").splitlines()
    return np.array([[line["step"], line["loss"]] for line in map(json.loads, lines)])


def steps_saved(output) -> list[int]:
    return sorted(load_progress(p).step for p in (output / "checkpoints").glob("*.safetensors"))


def kill_at_a_moment(process, output, rng, while_writing: bool) -> None:
    """Kill it some steps after it went on; or when half of a checkpoint is there."""
    folder, log = output / "checkpoints", output / "log.jsonl"
    steps = rng.randrange(1, 7)
    begun = None
    while process.poll() is None:
        done = len(log.read_bytes().splitlines()) if log.exists() else 0
        begun = done if begun is None else min(begun, done)
        if while_writing:
            if any(folder.glob("*.partial")):
                break
        elif done >= begun + steps:
            time.sleep(rng.random() * 0.02)
            break
    process.send_signal(signal.SIGKILL)
    process.wait()


def check_the_end(settings, folder) -> None:
    """Killed after its last step, before its preset: the next one writes the trained weights."""
    expected = weights_of(folder)
    shutil.rmtree(folder / "preset")
    (folder / "metrics.json").unlink()
    process = start(settings, folder)
    assert process.wait() == 0, process.stderr.read()
    for found, weight in zip(weights_of(folder), expected, strict=True):
        np.testing.assert_array_equal(found, weight)


def weights_of(folder) -> list[np.ndarray]:
    return MegatronBertPretrainer.from_preset(str(folder / "preset")).get_weights()


def test_a_run_killed_many_times_is_as_one_that_was_not(corpus, tokenizer, tmp_path):
    settings = written_settings(corpus, tokenizer, tmp_path)
    whole, output, rng = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    process = start(settings, whole)
    assert process.wait() == 0, process.stderr.read()

    saved, kills = [], []
    for number in range(KILLS):
        process = start(settings, output)
        kill_at_a_moment(process, output, rng, while_writing=number % 2 == 1)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, process.stderr.read()
        kills.append(process)
        if (output / "checkpoints").exists():
            # What was there is there, whole, and one or two more.
            found = steps_saved(output)
            assert not saved or found[-1] >= saved[-1]
            saved = found
    assert len(kills) >= min(KILLS, 3)
    process = start(settings, output)
    assert process.wait() == 0, process.stderr.read()

    np.testing.assert_allclose(losses(output), losses(whole), atol=1e-5)
    # Negative control: the losses of neighbouring steps differ by much more.
    assert np.abs(np.diff(losses(whole)[:, 1])).min() > 1e-5
    assert np.abs(np.diff(losses(whole)[:, 1])).max() > 1e-2
    check_the_end(settings, whole)
    names = {path.name for path in (whole / "checkpoints").iterdir()}
    assert {path.name for path in (output / "checkpoints").iterdir()} == names


@pytest.mark.backend_independent
def test_a_damaged_checkpoint_is_refused_in_one_line(corpus, tokenizer, tmp_path):
    settings = written_settings(corpus, tokenizer, tmp_path)
    process = start(settings, tmp_path / "out")
    kill_at_a_moment(process, tmp_path / "out", random.Random(0), while_writing=True)
    path = tmp_path / "out" / "checkpoints" / "step_00000002.safetensors"
    path.write_bytes(b"x" * 100)
    process = start(settings, tmp_path / "out")
    assert process.wait() == 2
    last = process.stderr.read().decode().splitlines()[-1]
    assert "step_00000002.safetensors is damaged: remove it" in last


@pytest.mark.backend_independent
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_trainer_that_is_killed(corpus, tokenizer, tmp_path):
    settings = written_settings(corpus, tokenizer, tmp_path)
    process = start(settings, tmp_path / "out", "--workers", "1")
    log = tmp_path / "out" / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes()):
        time.sleep(0.05)
    workers = children_of(process.pid)
    process.kill()
    process.wait()
    assert workers
    deadline = time.monotonic() + 30
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def children_of(parent: int) -> list[str]:
    """Return the processes that are spawned to work; Python's tracker of resources is none."""
    threads = pathlib.Path(f"/proc/{parent}/task").glob("*/children")
    found = [pid for thread in threads for pid in thread.read_text().split()]
    lines = {pid: pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found}
    return [pid for pid, line in lines.items() if b"spawn_main" in line]


@pytest.mark.backend_independent
def test_workers_leave_nothing_when_a_run_ends(corpus, tokenizer, tmp_path):
    settings = written_settings(corpus, tokenizer, tmp_path)
    text = settings.read_text("utf-8")
    settings.write_text(text.replace("steps = 60", "steps = 3"), encoding="utf-8")
    process = start(settings, tmp_path / "out", "--workers", "1")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0
    assert b"leaked" not in errors
