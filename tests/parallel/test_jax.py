"""Keras's own sharding on JAX, with the rules of this package: same numbers, no more sent."""

import collections
import functools
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from sharded_models import TASKS, VOCABULARY

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX")

HERE = pathlib.Path(__file__).parent
MESHES = ("1x4", "2x2", "1x8", "2x4")
# The axis that is split, by the end of a variable's path; slots are called after their variables.
SPLIT = {
    "token_embedding/embeddings": 0,
    **{f"self_attention/{name}/kernel": 1 for name in ("query", "key", "value")},
    **{f"self_attention/{name}/bias": 0 for name in ("query", "key", "value")},
    "attention_output/kernel": 0,
    "feedforward_intermediate_dense/kernel": 1,
    "feedforward_intermediate_dense/bias": 0,
    "feedforward_output_dense/kernel": 0,
    "mlm_head/bias": 0,
}


@functools.cache
def seen() -> dict:
    done = subprocess.run(
        [sys.executable, HERE / "jax_run.py"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
            "OMP_NUM_THREADS": "1",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8 "
            "--xla_backend_optimization_level=0",
        },
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parity
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("mesh", MESHES)
def test_training_is_the_same(mesh, task, parity):
    for kind in ("losses", "gradients"):
        found = seen()["training"][mesh][task][kind]
        parity(f"tensor parallel {mesh}, {task}: {kind}, 3 steps", found, 0, 1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_each_device_has_its_share(mesh):
    devices = int(mesh[2])
    for path, (shape, parts) in seen()["training"][mesh]["MaskedLM"]["shares"].items():
        for name, axis in SPLIT.items():
            if path.endswith(name) or f"{name.replace('/', '_')}_" in path:
                shape[axis] //= devices
        assert all(part == shape for part in parts), path
        assert len(parts) == devices * int(mesh[0])


def test_communication_is_megatrons():
    """Two all-reduces a layer and direction; neither weights nor logits are gathered."""
    task = seen()["training"]["1x4"]["MaskedLM"]
    sent, more = task["sent"], task["sent by one more layer"]
    assert len(more) - len(sent) == 4
    # Beside the layers': embedding, cross entropy (3), head, clipping, the accuracy's argmax (2).
    assert len(sent) <= 4 * 2 + 8
    assert {kind for kind, _ in sent} <= {"all-reduce", "all-gather"}
    for kind, shapes in sent:
        if kind == "all-gather":  # of the accuracy: a maximum and its place of each device
            assert f"{VOCABULARY}]" not in shapes, shapes
            assert f"[{VOCABULARY}," not in shapes, shapes


@pytest.mark.parametrize(
    ("variant", "limit"),
    [
        ("accumulation", 1e-5),
        ("bfloat16", 0.05),  # partial sums are rounded
        ("checkpointing and dropout", 1e-5),
        ("sequence parallel", 1e-5),
    ],
)
def test_training_in_other_ways_is_the_same(variant, limit):
    found = seen()["variants"]["differences"][variant]
    assert max(found.values()) < limit


def test_sequence_parallelism_gathers_activations_only():
    """Left to itself XLA gathers the table, and sends attention from heads to positions."""
    sent = seen()["variants"]["sent with sequence parallelism"]
    kinds = collections.Counter(kind for kind, _ in sent)
    assert set(kinds) == {"all-reduce", "all-gather"}
    gathered = [shapes for kind, shapes in sent if kind == "all-gather"]
    assert not any(f"[{VOCABULARY}," in shapes for shapes in gathered)
    # Two a layer and direction, the head's two, and the accuracy's two.
    assert len(gathered) == 4 + 2 + 2


def test_optimizer_state_moves_between_meshes():
    moving = seen()["moving"]
    assert moving["slots are equal"]
    for where in ("2x2", "one device"):
        np.testing.assert_allclose(moving[where], moving["there"], atol=1e-5)
    # Negative control: without the state the second loss is another one.
    assert abs(moving["new optimizer"][1] - moving["there"][1]) > 1e-4


def test_answers_and_metrics_are_those_of_one_device():
    (scores, texts), (expected, right) = (seen()["answers"][key] for key in ("mesh", "plain"))
    assert texts == right
    for name in expected:
        np.testing.assert_allclose(scores[name], expected[name], atol=1e-5)


def test_any_number_of_rows_has_answers():
    counts = {"logits": 1, "predict": 3, "odd steps": 4, "some steps": 2, "a dataset": 4}
    for name, (rows, difference) in seen()["rows"].items():
        assert rows == counts.get(name, rows)
        assert difference < 1e-5
    assert seen()["rows"]["windows"][0] % 2 == 1


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("outside", "embeddings was made outside of this model_parallel"),
        ("batch", "a batch of 5 samples cannot be split over the 2 devices"),
        ("last batch", "a batch of 3 samples cannot be split over the 2 devices"),
        ("heads", "num_heads=2 cannot be split over the 4 devices of axis 'model'"),
        ("vocabulary", "vocabulary_size=57 cannot be split over the 4 devices"),
        ("devices", "data=1 times model=3 is 3 devices, but there are 8"),
    ],
)
def test_errors(what, message):
    assert message in seen()["errors"][what]
