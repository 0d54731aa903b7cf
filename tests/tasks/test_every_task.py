"""What holds for each task: it learns, is saved, takes LoRA, quantization and mixed precision."""

import json
import warnings

import keras
import numpy as np
import pytest
from models import as_numpy
from small_tasks import CASES, TEXTS, Case

every_task = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
trainable_tasks = pytest.mark.parametrize(
    "case", [case for case in CASES if case.learns], ids=lambda case: case.name
)


@trainable_tasks
def test_it_learns_from_raw_samples(case: Case):
    task = case.make(initializer_range=0.1)  # at 0.02 some stay at chance for many steps
    task.compile(optimizer=keras.optimizers.Adam(5e-3))
    losses = case.fit(task, epochs=60)
    assert losses[-1] < 0.85 * losses[0]
    # Batches that are not of one size; compiling for each would take longer than running.
    task.compile(optimizer=task.optimizer, run_eagerly=True)
    labels = {} if case.y is None else {"y": case.y}
    scores = task.evaluate(case.x, **labels, batch_size=3, verbose=0, return_dict=True)
    assert scores["loss"] < losses[0]
    outputs = task.predict(case.x, batch_size=3, verbose=0)
    assert all(len(array) == 4 for array in keras.tree.flatten(outputs))


@every_task
def test_preset_and_keras_file_round_trip(case: Case, tmp_path):
    task = case.make(seed=0)
    expected = case.answers(task)
    task.save_to_preset(tmp_path / "preset")
    task.save(tmp_path / "model.keras")
    found = [case.task, case.base] if case.base else [case.task]
    for loaded in (
        *(cls.from_preset(str(tmp_path / "preset")) for cls in found),
        keras.saving.load_model(tmp_path / "model.keras"),
    ):
        assert type(loaded) is case.task
        np.testing.assert_array_equal(case.answers(loaded), expected)
        assert loaded.preprocessor.get_config() == task.preprocessor.get_config()
        assert loaded.get_config().keys() == task.get_config().keys()
    # Negative control: the same without the weights.
    empty = case.task.from_preset(str(tmp_path / "preset"), load_weights=False)
    assert not np.array_equal(case.answers(empty), expected)


@every_task
def test_a_preset_of_another_task_gives_its_encoder(case: Case, tmp_path):
    other = next(other for other in CASES if other is not case)
    donor = other.make(seed=0)
    donor.save_to_preset(tmp_path / "preset")
    counts = {name: n for name, n in case.arguments.items() if name == "num_classes"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = case.task.from_preset(str(tmp_path / "preset"), **counts)
    said = [warning for warning in caught if "is random until" in str(warning.message)]
    heads = {v.path.split("/")[0] for v in task.weights} & {"mlm_head", "binary_head"}
    heads -= {v.path.split("/")[0] for v in donor.weights}
    assert bool(said) == bool(heads)
    assert all(head in str(said[0].message) for head in heads)
    assert all(warning.filename == __file__ for warning in said)
    for ours, theirs in zip(task.backbone.weights, donor.backbone.weights, strict=True):
        np.testing.assert_array_equal(as_numpy(ours), as_numpy(theirs))
    assert task.preprocessor.sequence_length == donor.backbone.max_sequence_length
    assert json.loads((tmp_path / "preset/task.json").read_text())["class_name"] == (
        f"MegatronBert{other.name}"
    )


@trainable_tasks
def test_lora_trains_adapters_which_are_saved(case: Case, tmp_path):
    task = case.make(seed=0)
    task.save_to_preset(tmp_path / "preset")
    task.backbone.enable_lora(2)
    before = {v.path: as_numpy(v) for v in task.weights}
    trained = {v.path for v in task.trainable_weights if v.path in before}
    task.compile(optimizer=keras.optimizers.Adam(1e-2), run_eagerly=True)  # no need to compile
    assert np.isfinite(case.fit(task, epochs=2)).all()
    changed = {v.path for v in task.weights if not np.array_equal(as_numpy(v), before[v.path])}
    assert changed
    assert changed <= trained
    assert not {path for path in changed if path.endswith("self_attention/query/kernel")}
    assert {path for path in changed if path.endswith("self_attention/query/lora_kernel_b")}

    task.backbone.save_lora_weights(str(tmp_path / "adapters.lora.h5"))
    loaded = case.task.from_preset(str(tmp_path / "preset"))
    base = as_numpy(loaded.backbone(_ids(loaded))["sequence_output"])
    loaded.backbone.enable_lora(2)
    loaded.backbone.load_lora_weights(str(tmp_path / "adapters.lora.h5"))
    expected = as_numpy(task.backbone(_ids(task))["sequence_output"])
    actual = as_numpy(loaded.backbone(_ids(loaded))["sequence_output"])
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert np.abs(base - expected).max() > 1e-3  # negative control: without the adapters

    task.save_to_preset(tmp_path / "merged")
    merged = case.task.from_preset(str(tmp_path / "merged"))
    np.testing.assert_allclose(case.answers(merged), case.answers(task), atol=1e-5)


@every_task
@pytest.mark.parametrize(("mode", "tolerance"), [("int8", 0.05), ("int4", 0.5)])
def test_quantized_answers_are_near_and_survive_saving(case: Case, mode, tolerance, tmp_path):
    task = case.make(seed=0)
    states = as_numpy(task.backbone(_ids(task))["sequence_output"])
    task.quantize(mode)
    rounded = as_numpy(task.backbone(_ids(task))["sequence_output"])
    error = np.sqrt(((rounded - states) ** 2).mean() / (states**2).mean())
    assert 0 < error < tolerance
    expected = case.answers(task)
    task.save_to_preset(tmp_path / "preset")
    loaded = case.task.from_preset(str(tmp_path / "preset"))
    np.testing.assert_allclose(case.answers(loaded), expected, atol=1e-5)
    loaded.save_to_preset(tmp_path / "preset")
    again = case.task.from_preset(str(tmp_path / "preset"))
    np.testing.assert_allclose(case.answers(again), expected, atol=1e-5)


@trainable_tasks
def test_mixed_precision_trains_and_answers(case: Case, tmp_path):
    exact = case.make(seed=0)
    task = case.make(seed=0, dtype="mixed_bfloat16")
    np.testing.assert_allclose(case.answers(task), case.answers(exact), atol=0.1)
    assert {v.dtype for v in task.trainable_weights} == {"float32"}
    task.compile(optimizer=keras.optimizers.Adam(1e-3), run_eagerly=True)
    losses = case.fit(task, epochs=2)
    assert np.isfinite(losses).all()


@every_task
def test_unknown_arguments_are_refused_instead_of_dropped(case: Case):
    with pytest.raises(ValueError, match="unknown argument 'hidden_dims'"):
        case.task(case.make().backbone, hidden_dims=4, **case.arguments)


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.gives_logits], ids=lambda case: case.name
)
def test_answers_need_a_preprocessor(case: Case):
    task = case.make()
    task.preprocessor = None
    with pytest.raises(ValueError, match="preprocessor"):
        case.answer(task)


def _ids(task) -> dict:
    """Ids of texts for the task's backbone."""
    return task.preprocessor.tokenizer.encode(TEXTS, sequence_length=20)
