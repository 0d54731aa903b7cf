"""What `fit` makes of the samples it is given: their order, and Series that have an index."""

import warnings

import keras
import numpy as np
import pandas as pd
import pytest
from small_tasks import CASES, PAIRS, TEXTS

from keras_megatron.tasks.samples import by_position, shuffled_batches

CASE = {case.name: case for case in CASES}


def series(values) -> pd.Series:
    """Return a Series whose index is in another order than its values."""
    return pd.Series(list(values)[::-1], index=range(len(values))).iloc[::-1]


@pytest.mark.backend_independent
@pytest.mark.parametrize("name", ["TextClassifier", "NextSentencePredictor", "MultipleChoice"])
def test_a_series_counts_by_position(name):
    case = CASE[name]
    preprocessor = case.make().preprocessor
    assert series(TEXTS)[0] != TEXTS[0]  # so it would be seen
    weights = [0.5, 1.0, 2.0, 4.0]
    x = series(case.x) if case.x is TEXTS else tuple(map(series, case.x))
    for call in (preprocessor, lambda *given: preprocessor.dataset(*given)[0]):
        expected = call(case.x, case.y, weights)
        given = call(x, series(case.y), series(weights))
        for ids in expected[0]:
            np.testing.assert_array_equal(given[0][ids], expected[0][ids])
        for ours, right in zip(given[1:], expected[1:], strict=True):
            np.testing.assert_array_equal(ours, right)
    assert by_position((x, None))[1] is None


def test_fit_evaluate_and_classify_take_series():
    case = CASE["TextClassifier"]
    task = case.make(seed=1)
    task.compile(run_eagerly=True)
    expected = task.evaluate(TEXTS, case.y, verbose=0)
    assert task.evaluate(series(TEXTS), series(case.y), verbose=0) == pytest.approx(expected)
    # Negative control: labels in another order.
    assert task.evaluate(TEXTS, case.y[::-1], verbose=0) != pytest.approx(expected, abs=1e-4)
    labels = [answer["scores"] for answer in task.classify(series(TEXTS))]
    assert labels == [answer["scores"] for answer in task.classify(TEXTS)]
    task.fit(series(TEXTS), series(case.y), validation_split=0.5, verbose=0)


@pytest.mark.backend_independent
def test_batches_of_arrays_are_shuffled_anew():
    arrays = ({"token_ids": np.arange(20).reshape(10, 2)}, np.arange(10))
    twice = shuffled_batches(arrays, 4).repeat(2)
    assert [len(y) for _, y in twice] == [4, 4, 2] * 2
    for x, y in twice:
        np.testing.assert_array_equal(x["token_ids"][:, 0], 2 * y)  # rows stay together
    orders = [np.concatenate([y for _, y in list(twice)[i : i + 3]]) for i in (0, 3)]
    for order in orders:
        assert sorted(order) == list(range(10))
    assert list(orders[0]) != list(orders[1]) != list(range(10))


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX traces the loss that looks on")
@pytest.mark.parametrize("shuffle", [True, False])
def test_ids_are_shuffled_in_fit(shuffle):
    case = CASE["NextSentencePredictor"]
    task = case.make()
    seen = []

    def loss(y_true, y_pred):
        seen.append(np.ravel(y_true).tolist())
        return y_pred[:, 0] * 0.0

    task.compile(optimizer="sgd", loss=loss, metrics=None, run_eagerly=True)
    ids = task.preprocessor(tuple(list(column) * 5 for column in PAIRS))
    labels = np.arange(20)
    task.fit(ids, labels, batch_size=5, verbose=0, shuffle=shuffle)
    order = [int(label) for batch in seen[-4:] for label in batch]
    assert sorted(order) == list(range(20))
    assert (order == list(range(20))) != shuffle


def test_nothing_is_warned_of_that_a_user_cannot_change(caplog):
    task = CASE["TokenClassifier"].make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of Keras with NumPy
        CASE["TokenClassifier"].fit(task)
        task.quantize("int8")
    assert "num_threads" not in caplog.text
