"""Labels that are missing or out of range are refused before anything runs, in each task."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
from models import small_backbone
from small_tasks import CASES, TEXTS, Case

from keras_megatron import MegatronBertTextClassifier, MegatronBertTokenClassifier

LABELLED = [
    *("TextClassifier", "TokenClassifier", "QuestionAnswering", "MultipleChoice"),
    "NextSentencePredictor",
]
ANSWERS = [{"text": "it was", "answer_start": 0}] * 4
QUESTIONS = Case(
    "QuestionAnswering", (["what was it"] * 4, TEXTS), ANSWERS, lambda task: task.answer("it", "it")
)
BY_NAME = {case.name: case for case in [*CASES, QUESTIONS]}


@functools.cache
def model_of(name: str):
    return BY_NAME[name].make()


def arrays_of(name: str) -> tuple:
    """Ids, labels and weights that the task's preprocessor makes of its samples."""
    case = BY_NAME[name]
    return keras.utils.unpack_x_y_sample_weight(model_of(name).preprocessor(case.x, y=case.y))


def assert_refused(name: str, x, y, message: str) -> None:
    """Labels are refused in one line, wherever they can be given."""
    model, (good_x, good_y, _) = model_of(name), arrays_of(name)
    for call in (
        lambda: model.fit(x, y, verbose=0),
        lambda: model.evaluate(x, y, verbose=0),
        lambda: model.fit(good_x, good_y, validation_data=(x, y), verbose=0),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def with_label(label, place=0):
    """Return a function that changes one label of an array."""

    def change(y):
        y = y.copy()
        y[place] = label
        return y

    return change


@pytest.mark.backend_independent
@pytest.mark.parametrize("name", LABELLED)
def test_labels_are_needed(name):
    message = f"MegatronBert{name} learns from labels: give y"
    assert_refused(name, BY_NAME[name].x, None, message)
    assert_refused(name, arrays_of(name)[0], None, message)


@pytest.mark.backend_independent
@pytest.mark.parametrize(("name", "change", "message"), [
    ("TextClassifier", with_label(2), "labels must be integers from 0 to 1, but label 0 is 2"),
    ("TextClassifier", with_label(-100, 3), "label 3 is -100: what has no label is left out by a"),
    ("TextClassifier", lambda y: [1, 2, 0, 0], "label 1 is 2"),
    ("TextClassifier", lambda y: y + 0.5, "label 0 is 1.5"),
    ("TextClassifier", lambda y: ["good"] * 4, "labels .* of ids must be numbers"),
    ("TextClassifier", lambda y: np.eye(3)[y], r"of shape \(samples, 2\), not \(4, 3\)"),
    ("TextClassifier", lambda y: np.eye(2)[y] * 2, "from 0 to 1, but row 0"),
    ("TokenClassifier", with_label(2, (1, 3)), r"from 0 to 1, but label \(1, 3\) is 2"),
    ("TokenClassifier", with_label(-100), r"label \(0, 0\) is -100: .* sample_weight of 0"),
    ("TokenClassifier", lambda y: y[:, 1:], r"must be of shape \(4, 20\), not \(4, 19\)"),
    ("QuestionAnswering", with_label(-1, (2, 1)), r"of at least 0, but label \(2, 1\) is -1"),
    ("QuestionAnswering", lambda y: y[:, 0], r"must be of shape \(4, 2\), not \(4,\)"),
    ("MultipleChoice", with_label(3), "from 0 to 2, but label 0 is 3"),
    ("MultipleChoice", with_label(2), "label 0 is 2, a choice that is not there"),
    ("NextSentencePredictor", with_label(2, 1), "from 0 to 1, but label 1 is 2"),
    ("MaskedLM", with_label(40, (1, 0)), r"from 0 to 39, but label \(1, 0\) is 40"),
    ("CausalLM", with_label(-1, (1, 0)), r"from 0 to 39, but label \(1, 0\) is -1"),
    ("Pretrainer", lambda y: {**y, "nsp": y["nsp"] + 1}, "from 0 to 1, but label 2 is 2"),
    ("Pretrainer", lambda y: {"mlm": y["mlm"] - 1}, r"from 0 to 39, but label \(0, 0\) is -1"),
    ("Pretrainer", lambda y: {**y, "nsp": None}, "None for 'nsp': leave 'nsp' out of the dict"),
    ("Pretrainer", lambda y: y["nsp"], "must be a dict of 'mlm', 'nsp' or both, not ndarray"),
])  # fmt: skip
def test_labels_of_ids_are_checked(name, change, message):
    x, y, _ = arrays_of(name)
    assert_refused(name, x, change(y), message)


@pytest.mark.backend_independent
@pytest.mark.parametrize("y", [{"nsp": None}, {"nsp": [0, 0, 1, 1]}])
def test_a_pretrainers_labels_of_texts_are_no_dict(y):
    with pytest.raises(ValueError, match=r"are the order's, in a list, or None: not a dict"):
        model_of("Pretrainer").fit(BY_NAME["Pretrainer"].x, y, verbose=0)


def test_labels_without_weight_are_not_looked_at():
    model = MegatronBertTokenClassifier(small_backbone(num_layers=1, vocabulary_size=40), 3)
    model.compile(run_eagerly=True)
    ids = np.arange(12).reshape(2, 6)
    x = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": 0 * ids + 1}
    y, weight = ids % 3, (ids % 2).astype("float32")
    expected = model.evaluate(x, y, sample_weight=weight, verbose=0)
    for nothing in (-100, 7):
        labels = np.where(weight > 0, y, nothing)
        loss = model.evaluate(x, labels, sample_weight=weight, verbose=0)
        assert loss == pytest.approx(expected, rel=1e-5)
        with pytest.raises(ValueError, match=f"is {nothing}"):
            model.evaluate(x, labels, verbose=0)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_metrics_count_labels_without_weight(num_classes):
    """They are of raw texts and of ids the same: a metric may have no weights."""
    case = BY_NAME["TextClassifier"]
    arguments = {"num_classes": num_classes}
    model = dataclasses.replace(case, arguments=arguments, preprocessor={}).make()
    model.compile(run_eagerly=True)
    y, weight = np.array([2, 1, 0, 2]), np.array([0.0, 0.0, 0.0, 1.0])
    ids = model.preprocessor(case.x)
    expected = model.evaluate(case.x, y, sample_weight=weight, verbose=0)
    found = model.evaluate(ids, y, sample_weight=weight, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    zeros = model.evaluate(ids, y * (weight > 0), sample_weight=weight, verbose=0)
    assert zeros[0] == pytest.approx(expected[0], rel=1e-5)
    assert abs(zeros[1] - expected[1]) > 0.01  # negative control


def test_a_loss_of_your_own_takes_other_labels():
    model = MegatronBertTextClassifier(small_backbone(num_layers=1, vocabulary_size=40), 3)
    model.compile(loss="mean_squared_error", metrics=None, run_eagerly=True)
    ids = np.ones((2, 6), "int32")
    x = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": ids}
    logits = model.predict(x, verbose=0)
    assert model.evaluate(x, logits - 2, verbose=0) == pytest.approx(4, rel=1e-4)


@pytest.mark.backend_independent
def test_numbers_beyond_int32_stay_what_they_are():
    """They would wrap around: 2**32 + 1 to class 1, 3e9 to a negative target of a regression."""
    for labels in ([2**32 + 1, 0, 1, 0], np.array([2**32 + 1, 0, 1, 0])):
        with pytest.raises(ValueError, match="labels must be integers from 0 to 1, but label 0"):
            model_of("TextClassifier").evaluate(TEXTS, labels, verbose=0)
        ids = arrays_of("TextClassifier")[0]
        with pytest.raises(ValueError, match="labels must be integers from 0 to 1, but label 0"):
            model_of("TextClassifier").evaluate(ids, labels, verbose=0)
    regression = MegatronBertTextClassifier(small_backbone(), num_classes=1, preprocessor=None)
    regression.compile(loss="mae", run_eagerly=True)
    ids = {name: np.asarray(array) for name, array in ids.items()}
    for target in ([3_000_000_000] * 4, np.array([3_000_000_000] * 4)):
        loss = regression.evaluate(ids, target, verbose=0)
        assert float(np.ravel(loss)[0]) == pytest.approx(3e9, rel=1e-3)
