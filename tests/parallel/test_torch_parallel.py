"""PyTorch's engine: sharded on 2 and 4 processes, a model does what it does on one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import sharded_models

sys.path.append(str(Path(__file__).parents[2] / "tools"))
import checkpoint_matrix

pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="tests PyTorch's engine")

HERE = Path(__file__).parent
TASKS = ("MaskedLM", "TextClassifier", "Pretrainer")
LAYERS = 2
# Split a layer: kernels and biases of query, key, value and feed-forward up, kernels of the two
# others. Beside them the token table, and with masked LM its bias.
SPLIT_A_LAYER, SPLIT_BESIDE = 10, {"MaskedLM": 2, "TextClassifier": 1, "Pretrainer": 2}


def run(
    folder: Path, processes: int, *checks: str, torchrun: bool = False
) -> subprocess.CompletedProcess:
    """Run checks of torch_checks.py on processes."""
    folder.mkdir(exist_ok=True)
    command = [str(HERE / "torch_run.py"), str(folder), str(processes), *checks]
    if torchrun:
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [*start, *command]
    command = [sys.executable, *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)


def results(folder: Path, processes: int) -> list[dict]:
    """Return what each process's checks returned."""
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Results of two processes, and the folder where they saved."""
    folder = tmp_path_factory.mktemp("parallel") / "two"
    done = run(
        folder,
        2,
        *("errors", "save", "matrix", "equality:1", "equality:2", "variants", "answers"),
        *("counts:MaskedLM:1", "dropout:1", "resumable:-1", "quantized"),
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder, results(folder, 2)


@pytest.fixture(scope="module")
def four(two):
    """Results of four processes, which load what the two saved."""
    folder = two[0].parent / "four"
    done = run(folder, 4, "load", "equality:1", "equality:2", "counts:MaskedLM:2", "dropout:2")
    assert done.returncode == 0, done.stderr[-5000:]
    return folder, results(folder, 4)


@pytest.fixture(params=[2, 4])
def processes(request) -> list[dict]:
    """Results of two and of four processes."""
    return request.getfixturevalue({2: "two", 4: "four"}[request.param])[1]


@pytest.mark.parametrize("data", [1, 2])
@pytest.mark.parametrize("task", TASKS)
def test_training_is_that_of_one_device(processes, task, data):
    for result in processes:
        found = result[f"equality:{data}"][task]
        assert found["same gradients"]
        assert found["largest gradient"] > 0.1  # so that a difference would show
        assert found["gradients"] < 2e-5  # Adam's steps before them enlarge what is rounded
        for what in ("losses", "slots", "predictions"):
            assert found[what] < 1e-5, what


@pytest.mark.parametrize(
    ("variant", "limit"),
    [
        ("checkpointing", 1e-5),
        ("thread", 1e-5),
        ("lora", 1e-5),
        ("accumulation", 1e-5),
        ("sequence", 1e-5),
        ("bfloat16", 0.05),  # of gradients up to 0.9; partial sums are rounded
    ],
)
def test_training_in_other_ways_is_that_of_one_device(two, variant, limit):
    for result in two[1]:
        assert max(result["variants"][variant].values()) < limit


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantized_models_are_those_of_one_device(two, mode):
    for result in two[1]:
        found = result["quantized"][mode]
        assert max(found["1"], found["2"]) < 1e-5
        assert max(found["loaded 1"], found["loaded 2"]) < found["quantization"]
        assert found["quantization"] > 1e-3  # negative control


@pytest.mark.parametrize("data", ["1", "2"])
def test_answers_and_metrics_are_those_of_one_device(two, data):
    for result in two[1]:
        (scores, texts), (expected, right) = (result["answers"][key] for key in (data, "plain"))
        assert texts == right
        assert len(set(right[2])) == 3
        assert scores.keys() == expected.keys() >= {"auc", "loss", "precision"}
        for name in scores:
            np.testing.assert_allclose(scores[name], expected[name], atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("data", [1, 2])
def test_each_process_holds_its_share(processes, task, data):
    for result in processes:
        found = result[f"equality:{data}"][task]
        weights = LAYERS * SPLIT_A_LAYER + SPLIT_BESIDE[task]
        assert len(found["split"]) == 3 * weights  # with two slots each
        assert found["wrong"] == []


def test_communication_is_megatrons(two):
    for result in two[1]:
        count = result["counts:MaskedLM:1"]
        # The check of the batch, the token table, and two a layer.
        assert count["batch and forward"] == {"allreduce_": 2, "all_reduce": 2 * LAYERS}
        assert count["loss"] == {"allreduce_": 2}
        assert count["backward"] == {"all_reduce": 2 * LAYERS + 1}  # and that of the head
        assert count["optimizer"] == {"allreduce_": 1}  # the gradients' norm
        assert count["metrics"] == {"allreduce_": 2}  # where logits are highest


def test_communication_with_data_parallelism(four):
    for result in four[1]:
        count = result["counts:MaskedLM:2"]
        assert count["batch and forward"] == {"allreduce_": 2, "all_reduce": 2 * LAYERS}
        assert count["loss"] == {"allreduce_": 2, "all_reduce": 4}  # sums over the batch
        # Once more for each variable's gradient.
        assert count["backward"] == {"all_reduce": 2 * LAYERS + 1 + count["variables"]}
        assert count["optimizer"] == {"allreduce_": 1}
        assert count["metrics"] == {"allreduce_": 2, "all_reduce": 2}


def test_dropout_has_megatrons_streams(two, four):
    for (_, found), data in ((two, 1), (four, 2)):
        found = [result[f"dropout:{data}"] for result in found]
        whole, split = [x["whole"] for x in found], [x["split"] for x in found]
        assert all(x == whole[0] for x in whole)
        assert whole[0][0] != whole[0][1]  # each call drops others
        replicas = [tuple(x) for x in split]
        assert len(set(replicas)) == 2  # the size of the mesh's axis "model"
        assert replicas[0] != replicas[1]
        for x in found:
            assert abs(x["kept"] - 0.5) < 0.05
            assert x["checkpointing"] == 0.0  # gradient checkpointing drops the same again
            assert x["replicated"] == found[0]["replicated"]  # after three steps


def test_saved_weights_load_unsharded(two):
    folder, (saved, _) = two
    assert saved["save"]["left"] == []  # no temporary folder
    values = np.load(folder / "values.npz")
    model = sharded_models.build("MaskedLM", seed=4)
    model.load_weights(folder / "saved.weights.h5")
    preset = type(model).from_preset(str(folder / "preset"), preprocessor=None)
    for loaded in (model, keras.saving.load_model(folder / "saved.keras"), preset):
        assert len(loaded.weights) == len(values)
        for weight in loaded.weights:
            np.testing.assert_array_equal(weight.numpy(), values[weight.path])


@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_saved_models_load_on_other_backends(two, backend):
    """Two cells of the table that tools/checkpoint_matrix.py makes: two devices, and two."""
    saver, loader = ("torch", 2), (backend, 2)
    checkpoint_matrix.run(two[0], "load", loader, [saver])
    cell = checkpoint_matrix.compare(two[0], saver, loader)
    assert cell["weights"]
    assert cell["optimizer"]
    assert cell["outputs"] < checkpoint_matrix.LIMIT
    saved = json.loads((two[0] / "torch 2" / "save torch 2.json").read_text())
    other = checkpoint_matrix.digest(checkpoint_matrix.build(seed=2).weights)
    assert other != saved["weights"]  # before it is loaded


def test_saved_weights_load_on_another_mesh(four):
    for result in four[1]:
        assert result["load"] == {"weights": [], "preset": []}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("devices", ("model=3", "there are 2", "torchrun")),
        ("other devices", ("['gpu:0']", "['cpu:0', 'cpu:1']")),
        ("outside", ("made outside", "unsharded")),
        ("nested", ("leave the model_parallel",)),
        ("batch", ("batch of 3", "2 devices")),
        ("different", ("another batch",)),
        ("vocabulary", ("vocabulary_size=55", "2 devices")),
    ],
)
def test_errors_name_the_numbers(two, name, parts):
    for result in two[1]:
        assert all(part in result["errors"][name] for part in parts)


def test_killed_worker_ends_the_others_and_the_run_resumes(two, tmp_path):
    killed = tmp_path / "killed"
    done = run(killed, 2, "resumable:2")
    ended = time.time()
    assert done.returncode == 2  # both processes
    assert "RuntimeError" in done.stderr
    assert ended - float((killed / "killed_at").read_text()) < 60
    assert not list(killed.glob(".saving-*"))
    assert run(killed, 2, "resumable:-1", torchrun=True).returncode == 0
    expected = two[1][0]["resumable:-1"]
    resumed = results(killed, 2)[0]["resumable:-1"]
    assert list(resumed) == ["2", "3"]
    np.testing.assert_allclose([*resumed.values()], [expected["2"], expected["3"]], rtol=1e-6)
