"""TensorFlow's engine of model parallelism: the same numbers as on one device, and no more sent."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from sharded_models import VOCABULARY

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow")

HERE = pathlib.Path(__file__).parent
TASKS = ("MaskedLM", "TextClassifier", "Pretrainer")
MESHES = tuple(f"{mesh} {task}" for mesh in ("1x2", "2x1", "1x4", "2x2") for task in TASKS)
STATE = ("saving", "dropout", "resuming", "predictions", "metrics", "errors", "variants")
# Of one layer: the axis that is split. What is not here is whole on every device.
SPLIT = {
    "embeddings/token_embedding/embeddings": 0,
    **{
        f"transformer_layer_0/self_attention/{name}/kernel": 1 for name in ("query", "key", "value")
    },
    **{f"transformer_layer_0/self_attention/{name}/bias": 0 for name in ("query", "key", "value")},
    "transformer_layer_0/self_attention/attention_output/kernel": 0,
    "transformer_layer_0/feedforward_intermediate_dense/kernel": 1,
    "transformer_layer_0/feedforward_intermediate_dense/bias": 0,
    "transformer_layer_0/feedforward_output_dense/kernel": 0,
    "mlm_head/bias": 0,
}


@functools.cache
def child(script: str, *what: str) -> dict:
    """Run a script in a process of its own: devices are made before TensorFlow is used."""
    done = subprocess.run(
        [sys.executable, HERE / script, *what],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def training() -> dict:
    return child("tensorflow_run.py", "training", "communication")["training"]


def state(what: str) -> dict:
    return child("tensorflow_state_run.py", *STATE)[what]


@pytest.mark.parity
@pytest.mark.parametrize("mesh", MESHES)
def test_training_is_the_same(mesh, parity):
    for kind in ("losses", "gradients", "velocities"):
        found = training()[mesh][kind]
        parity(f"tensor parallel {mesh}: {kind}, after 3 steps", found, 0, 1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_replicas_stay_equal(mesh):
    """To the last bit, with dropout of what is split and of what is not."""
    assert training()[mesh]["drifted"] == []


@pytest.mark.parametrize("mesh", MESHES)
def test_each_device_has_its_share(mesh):
    devices, split = int(mesh[2]), 0
    for path, (shape, parts) in training()[mesh]["parts"].items():
        for name, axis in SPLIT.items():
            # Slots of the optimizer are called after their variables.
            if path == name or f"{name.replace('/', '_')}_" in path:
                shape[axis] //= devices
                split += 1
        assert all(part == shape for part in parts), path
        assert len(parts) == devices * int(mesh[0])
    absent = 0 if "Text" not in mesh else 1
    assert split == 3 * (len(SPLIT) - absent)


@pytest.mark.parametrize("mesh", MESHES)
def test_nothing_is_gathered(mesh):
    """Neither weights nor logits: all that is sent is added up, or its maximum taken."""
    sent = training()[mesh]["sent"]
    assert sent
    assert all(kind == "reduce" for kind, _ in sent)


def test_communication_is_megatrons():
    """Two all-reduces a layer and direction, and a few for the table, the loss and clipping."""
    seen = child("tensorflow_run.py", "training", "communication")["communication"]
    one, two = training()["1x4 MaskedLM"]["sent"], seen["two layers"]
    assert len(two) - len(one) == 4
    assert len(one) <= 4 + 9
    assert not any(VOCABULARY in shape for _, shape in two)
    # Negative control: TensorFlow's own lookup puts the table together.
    assert ["gather", [VOCABULARY, 16]] in seen["control"]


def test_files_move_between_meshes():
    seen = state("saving")
    assert seen["moved"] > 0
    assert seen["one device"] == [True] * 4
    assert seen["1x4"] == [True] * 4
    assert seen["epochs"] == 1  # the other was trained on the other mesh
    assert "split over devices" in seen["outside"]


def test_dropout():
    seen = state("dropout")
    for name in ("whole", "split"):
        assert 0.3 < seen[name]["kept"] < 0.7
        assert not seen[name]["calls agree"]
    assert seen["whole"]["devices agree"]
    assert not seen["split"]["devices agree"]


def test_killed_run_resumes():
    seen = state("resuming")
    assert seen["code"] == -signal.SIGKILL
    assert list(seen["killed"]) == ["2", "3"]  # a backup is made after each epoch
    assert list(seen["whole"]) == ["0", "1", "2", "3"]
    expected = [seen["whole"][epoch] for epoch in ("2", "3")]
    np.testing.assert_allclose([*seen["killed"].values()], expected, rtol=1e-6)


def test_any_number_of_samples_is_predicted():
    assert len(state("predictions")) == 6
    assert max(state("predictions").values()) < 1e-5


def test_metrics_are_those_of_one_device():
    seen = state("metrics")
    assert seen["plain"].keys() >= {"auc", "loss", "precision"}
    for name, expected in seen["plain"].items():
        np.testing.assert_allclose(seen["mesh"][name], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("outside", "embeddings was made outside of this model_parallel"),
        ("batch", "a batch of 3 samples cannot be split over the 2 devices"),
        ("optimizer", "was made outside of this model_parallel"),
        ("metric", "sparse_categorical_accuracy/total"),
        ("eagerly", "run_eagerly=True would run unsharded"),
        ("all eagerly", "run_functions_eagerly(True) would run unsharded"),
        ("call", "was called on its own, which would run unsharded"),
        ("layer", "embeddings was called on its own, which would run unsharded"),
        ("graph", "is split over devices: run its model by fit"),
        ("generate", "generate is not possible inside of model_parallel(...) on TensorFlow"),
        ("environment", "DTENSOR_ENABLE_COMBINE_ALL_REDUCES_OPTIMIZATION must stay 0"),
        ("int8", "is quantized, which TensorFlow's DTensor cannot split"),
        ("devices", "TensorFlow has 4 CPU devices already, and cannot make 8"),
        ("sequence", "a sequence of 23 tokens cannot be split over the 2 devices"),
        ("number", "data=1 times model=3 is 3 devices, but there are 4"),
    ],
)
def test_errors(what, message):
    assert message in state("errors")[what]


def test_all_is_as_before():
    assert state("errors")["restored"]
    assert state("errors")["restored after an error"]


@pytest.mark.parametrize(
    ("what", "tolerance"),
    [
        ("lora", 1e-5),
        ("bfloat16", 0.03),
        ("checkpointing", 1e-5),
        ("accumulation", 1e-5),
        ("sequence", 1e-5),
    ],
)
def test_variants(what, tolerance):
    seen = state("variants")[what]
    np.testing.assert_allclose(seen["sharded"], seen["plain"], rtol=0, atol=tolerance)
    if what == "lora":
        shape, shares = seen["parts"]["transformer_layer_0/self_attention/query/lora_kernel_a"]
        assert (shape, shares[0]) == ([16, 4, 2], [16, 2, 2])
