"""Fine-tuning from files: all tasks once, and a run that is killed next to one that is not."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import filelock
import keras
import numpy as np
import pytest

import keras_megatron
from keras_megatron import MegatronBertTextClassifier
from keras_megatron.finetuning import FinetuneSettings, finetune, predict
from keras_megatron.finetuning.records import read_records
from keras_megatron.finetuning.training_state import load_progress

CHILD = pathlib.Path(__file__).parent / "killed_run.py"


class Killed(BaseException):
    """What stands for a kill within this process: nothing that cleans up catches it."""


def settings(preset, data, **arguments) -> FinetuneSettings:
    return FinetuneSettings(
        **{
            "task": "text-classification",
            "preset": preset,
            "train": f"{data}/classes.tsv:train",
            "dev": f"{data}/classes.tsv:dev",
            "epochs": 3,
            "batch_size": 2,
            "learning_rate": 3e-3,
            "sequence_length": 48,
            **arguments,
        }
    )


def run(chosen: FinetuneSettings, output) -> dict:
    return finetune(chosen, output, verbose=0, log_every=1, save_every=2)


def log(output) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def losses(lines: list[dict]) -> np.ndarray:
    return np.array(
        [[line["epoch"], line["step"], line["loss"]] for line in lines if "step" in line]
    )


@pytest.fixture(scope="module")
def whole(preset, data, tmp_path_factory):
    """A run of 3 epochs of 3 steps that nothing stopped."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    run(settings(preset, data, test=f"{data}/classes.tsv:dev"), output)
    return output


def test_a_run_leaves_the_best_preset_metrics_and_a_picture(whole, preset, data, capsys):
    names = {".lock", "log.jsonl", "metrics.json", "preset", "run.json", "training.png"}
    assert {path.name for path in whole.iterdir()} == names
    assert (whole / "training.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((whole / "metrics.json").read_text())
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2, 3]
    accuracies = [epoch["dev"]["accuracy"] for epoch in metrics["epochs"]]
    assert metrics["best_epoch"] == 1 + accuracies.index(max(accuracies))
    assert metrics["dev"]["accuracy"] == max(accuracies)
    assert metrics["test"] == metrics["dev"]  # of the preset, on the same data
    lines = log(whole)
    assert losses(lines)[:, :2].tolist() == [[e, s] for e in (1, 2, 3) for s in (1, 2, 3)]
    rates = [line["learning_rate"] for line in lines if "step" in line]
    np.testing.assert_allclose(rates, 3e-3 * (1 - np.arange(9) / 9), rtol=1e-6)
    epoch = [line["train"]["loss"] for line in lines if "train" in line]
    np.testing.assert_allclose(losses(lines)[:, 2].reshape(3, 3).mean(1), epoch, rtol=1e-5)
    # The optimizer's state is not in the preset.
    weights = sum(path.stat().st_size for path in (whole / "preset").glob("*.weights.h5"))
    assert weights < 2 * sum(p.stat().st_size for p in pathlib.Path(preset).glob("*.weights.h5"))

    before = log(whole)
    capsys.readouterr()
    assert run(settings(preset, data, test=f"{data}/classes.tsv:dev"), whole) == metrics
    assert "is finished: there is nothing left to do" in capsys.readouterr().out
    assert log(whole) == before


def test_a_killed_run_goes_on_as_if_it_had_not_been(whole, preset, data, tmp_path):
    """Kill -9 while the state is written, then in the middle of an epoch; then finish."""
    output = tmp_path / "killed"
    chosen = settings(preset, data)
    for when, saved in (("second state", (0, 2)), ("epoch 2, step 3", (1, 2))):
        arguments = json.dumps({"settings": vars(chosen), "output": str(output), "when": when})
        done = subprocess.run(
            [sys.executable, str(CHILD), arguments],
            env={**os.environ, "PYTHONPATH": str(pathlib.Path(keras_megatron.__file__).parents[1])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        progress = load_progress(output / "state.safetensors")
        assert (progress.epoch, progress.step) == saved
        assert (output / "state.safetensors.partial").exists() == (when == "second state")
        assert not (output / "metrics.json").exists()
    metrics = run(chosen, output)
    np.testing.assert_allclose(losses(log(output)), losses(log(whole)), atol=1e-5)
    assert [e["dev"] for e in metrics["epochs"]] == [e["dev"] for e in log(whole) if "dev" in e]
    assert {path.name for path in output.iterdir()} == {path.name for path in whole.iterdir()}
    # Negative control: another seed gives other losses, and so does another order.
    assert np.abs(np.diff(losses(log(whole))[:, 2])).max() > 1e-3


def test_a_kill_at_a_bad_moment_leaves_a_run_that_goes_on(
    whole, preset, data, tmp_path, monkeypatch
):
    """Between a file that was written and its move to its place: the preset, then the metrics."""
    output = tmp_path / "killed"
    chosen = settings(preset, data, epochs=1)
    replace = os.replace

    def run_until(name: str) -> None:
        def kill(source, target):
            if pathlib.Path(target).name == name:
                raise Killed
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", kill)
            run(chosen, output)

    with pytest.raises(Killed):
        run_until("preset")
    assert not (output / "preset").exists()
    with pytest.raises(Killed):
        run_until("metrics.json")
    assert load_progress(output / "state.safetensors").epoch == 1
    assert run(chosen, output)["best_epoch"] == 1
    assert {path.name for path in output.iterdir()} == {path.name for path in whole.iterdir()}


TASKS = {
    "text-classification": ("classes.tsv:train", "classes.tsv:dev", "accuracy", "label"),
    "text-regression": ("numbers.tsv:train", "numbers.tsv:dev", "pearson", "score"),
    "next-sentence": ("order.tsv:train", "order.tsv:dev", "matthews", "label"),
    "token-classification": ("entities.conll:0-75%", "entities.conll:75-100%", "f1", "tags"),
    "question-answering": ("questions_train.json", "questions_dev.json", "exact_match", "text"),
    "multiple-choice": ("choices.jsonl:train", "choices.jsonl:dev", "accuracy", "scores"),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_fine_tuned_and_answers(task, preset, data, tmp_path):
    train, dev, metric, key = TASKS[task]
    chosen = settings(
        preset,
        data,
        task=task,
        train=f"{data}/{train}",
        dev=f"{data}/{dev}",
        epochs=1,
        batch_size=3,
        sequence_length=None,
    )
    metrics = run(chosen, tmp_path / "run")
    assert np.isfinite(metrics["epochs"][0]["train"]["loss"])
    assert -1 <= metrics["dev"][metric] <= 1
    answers = predict(str(tmp_path / "run" / "preset"), f"{data}/{dev}", batch_size=2)
    assert len(answers) == 2
    assert all(key in answer for answer in answers)
    assert json.loads(json.dumps(answers)) == answers
    if task == "question-answering":
        assert [answer["id"] for answer in answers] == ["dev-6", "dev-7"]


@pytest.mark.backend_independent
def test_two_processes_do_not_share_a_folder(preset, data, tmp_path):
    (tmp_path / "out").mkdir()
    with (
        filelock.FileLock(tmp_path / "out" / ".lock"),
        pytest.raises(ValueError, match="another process is training in"),
    ):
        run(settings(preset, data), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    run(settings(preset, data, epochs=1), tmp_path / "out")


@pytest.mark.backend_independent
def test_a_folder_with_another_lock_is_not_of_a_run(preset, data, tmp_path):
    (tmp_path / "poetry.lock").touch()
    with pytest.raises(ValueError, match="exists and is not of a run"):
        run(settings(preset, data), tmp_path)


def test_columns_are_read_in_the_order_that_was_trained_on(preset, data, tmp_path):
    train = f"{data}/order.tsv:train"
    swapped = tmp_path / "swapped.tsv"
    lines = [line.split("\t") for line in (data / "order.tsv").read_text("utf-8").splitlines()]
    rows = ["\t".join([second, first, label]) for _, label, first, second in lines]
    swapped.write_text("\n".join(rows) + "\n", "utf-8")
    metrics, answers = {}, {}
    for name, dev in {
        "as trained": f"{data}/order.tsv:dev",
        "swapped": f"{swapped}:75-100%",
    }.items():
        chosen = settings(preset, data, task="next-sentence", train=train, dev=dev, epochs=1)
        metrics[name] = run(chosen, tmp_path / name)["dev"]
        answers[name] = predict(str(tmp_path / name / "preset"), dev)
    assert metrics["as trained"] == metrics["swapped"]
    assert answers["as trained"] == answers["swapped"]
    trained = str(tmp_path / "swapped" / "preset")
    other_way = predict(trained, f"{swapped}:75-100%", columns=["second", "first"])
    assert other_way != answers["swapped"]
    for source in (f"{data}/classes.tsv:dev", f"{data}/texts.txt"):
        with pytest.raises(ValueError, match=r"there is no column 'first', only .*--columns"):
            predict(trained, source)
    (tmp_path / "swapped" / "preset" / "columns.json").write_text("{}")
    with pytest.raises(ValueError, match=r"columns\.json does not hold a list of names"):
        predict(trained, f"{data}/order.tsv:dev")


def test_a_head_of_another_kind_is_made_anew(preset, data, tmp_path):
    """From a classification to a regression, as GLUE's STS-B from MNLI, and back."""
    run(settings(preset, data, epochs=1), tmp_path / "classes")
    chosen = settings(str(tmp_path / "classes" / "preset"), data, task="text-regression", epochs=1)
    files = {part: f"{data}/numbers.tsv:{part}" for part in ("train", "dev")}
    metrics = run(dataclasses.replace(chosen, **files), tmp_path / "numbers")
    assert "pearson" in metrics["dev"]
    assert "score" in predict(str(tmp_path / "numbers" / "preset"), files["dev"])[0]
    several = MegatronBertTextClassifier.from_preset(
        str(tmp_path / "classes" / "preset"), multi_label=True, activation="sigmoid", num_classes=2
    )
    several.save_to_preset(str(tmp_path / "several"))
    for name, start in (("one", tmp_path / "numbers" / "preset"), ("two", tmp_path / "several")):
        run(settings(str(start), data, epochs=1), tmp_path / name)
        trained = MegatronBertTextClassifier.from_preset(str(tmp_path / name / "preset"))
        assert (trained.num_classes, trained.multi_label, trained.activation) == (2, False, None)


def test_choices_count_as_one_sample(preset, data, tmp_path, monkeypatch):
    """In the log, and where a run goes on that was killed after the last step of an epoch."""
    from keras_megatron.finetuning import run as module

    chosen = settings(
        preset,
        data,
        task="multiple-choice",
        train=f"{data}/choices.jsonl:train",
        dev=f"{data}/choices.jsonl:dev",
        epochs=2,
        batch_size=4,  # of six samples, of two or three choices
        sequence_length=None,
    )
    options = {"verbose": 0, "log_every": 1, "save_every": 1}
    finetune(chosen, tmp_path / "whole", **options)
    lines = log(tmp_path / "whole")
    rates = [line["learning_rate"] for line in lines if "step" in line]
    np.testing.assert_allclose(rates, 3e-3 * (1 - np.arange(4) / 4), rtol=1e-6)
    means = [line["train"]["loss"] for line in lines if "train" in line]
    by_step = losses(lines)[:, 2].reshape(2, 2)
    np.testing.assert_allclose((by_step * [4, 2]).sum(1) / 6, means, rtol=1e-5)

    def kill(self):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module._Run, "_evaluate", kill)
        with pytest.raises(Killed):
            finetune(chosen, tmp_path / "killed", **options)
    finetune(chosen, tmp_path / "killed", **options)
    np.testing.assert_allclose(losses(log(tmp_path / "killed")), losses(lines), atol=1e-5)


def test_weights_that_are_no_numbers_end_the_run(preset, data, tmp_path, monkeypatch):
    """A rate so high in the last step that no loss shows it."""
    from keras_megatron.finetuning import run as module

    def spoil(self, *args, **kwargs):
        weight = self._model.trainable_weights[0]
        weight.assign(weight * float("nan"))
        return evaluate(self, *args, **kwargs)

    evaluate = module._Run._evaluate
    monkeypatch.setattr(module._Run, "_evaluate", spoil)
    with pytest.raises(ValueError, match="embeddings is no longer finite: give a lower learning"):
        run(settings(preset, data, epochs=1), tmp_path / "run")
    assert not (tmp_path / "run" / "preset").exists()
    model = MegatronBertTextClassifier.from_preset(preset, num_classes=2)
    model.weights[0].assign(model.weights[0] * float("nan"))
    model.save_to_preset(str(tmp_path / "damaged"))
    with pytest.raises(ValueError, match="damaged answers with numbers that are not finite"):
        predict(str(tmp_path / "damaged"), f"{data}/texts.txt")


def test_a_loss_that_is_no_number_ends_the_run(preset, data, tmp_path):
    with pytest.raises(ValueError, match=r"the loss is nan in step \d of epoch 1: give a lower"):
        run(settings(preset, data, learning_rate=1e38), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_preset_of_the_task_keeps_its_head(whole, preset, data, tmp_path):
    """One batch at a rate of nearly nothing: the head is the one that was saved, or a new one."""
    arguments = {"epochs": 1, "learning_rate": 1e-12}
    saved = str(whole / "preset")
    run(settings(saved, data, **arguments), tmp_path / "more")
    head = classifier_kernel(saved)
    np.testing.assert_allclose(classifier_kernel(tmp_path / "more" / "preset"), head, atol=1e-6)
    # Negative control: other classes than the preset's, so a new head.
    table = (data / "classes.tsv").read_text().replace("\tsea\t", "\tocean\t")
    (tmp_path / "other.tsv").write_text(table)
    other = {"train": f"{tmp_path}/other.tsv:train", "dev": f"{tmp_path}/other.tsv:dev"}
    run(settings(saved, data, **arguments, **other), tmp_path / "other")
    new = tmp_path / "other" / "preset"
    assert np.abs(classifier_kernel(new) - head).max() > 1e-3
    names = MegatronBertTextClassifier.from_preset(str(new)).preprocessor.class_names
    assert names == ["land", "ocean"]


def classifier_kernel(preset) -> np.ndarray:
    task = MegatronBertTextClassifier.from_preset(str(preset))
    return keras.ops.convert_to_numpy(task.get_layer("classifier").kernel)


def test_a_hugging_face_folder_predicts(whole, data, tmp_path):
    classifier = MegatronBertTextClassifier.from_preset(str(whole / "preset"))
    classifier.export_to_transformers(tmp_path / "folder")
    source = f"{data}/classes.tsv:dev"
    answers = predict(str(tmp_path / "folder"), source)
    classifier.preprocessor.sequence_length = 96  # a folder has no other length than the positions
    expected = classifier.classify([record.values["text"] for record in read_records(source)])
    assert [a["label"] for a in answers] == [a["label"] for a in expected]
    np.testing.assert_allclose(
        [a["score"] for a in answers], [a["score"] for a in expected], atol=1e-5
    )
