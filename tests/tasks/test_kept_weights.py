"""What fails, changes or runs beside it leaves a model its weights, and its training honest."""

import threading

import keras
import numpy as np
import pytest
from small_tasks import CASES, TEXTS

CASE = {case.name: case for case in CASES}
Y = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    "change",
    [
        lambda task: setattr(task.backbone, "trainable", False),
        lambda task: task.backbone.enable_lora(2),
        lambda task: task.quantize("int8"),
    ],
    ids=["frozen", "LoRA", "quantized"],
)
def test_what_is_trained_does_not_change_in_silence(change):
    task = CASE["TextClassifier"].make(seed=0)
    task.compile(run_eagerly=True)
    task.fit(TEXTS, Y, verbose=0)
    change(task)
    expected = task.predict(TEXTS, verbose=0)
    for call in (task.fit, task.train_on_batch):
        with pytest.raises(ValueError, match="what is trained has changed since `compile`"):
            call(TEXTS, Y)
    np.testing.assert_array_equal(task.predict(TEXTS, verbose=0), expected)
    trained = {id(weight) for weight in task.trainable_weights}
    before = {id(weight): keras.ops.convert_to_numpy(weight) for weight in task.weights}
    task.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    task.fit(TEXTS, Y, verbose=0)
    changed = {
        id(weight)
        for weight in task.weights
        if (keras.ops.convert_to_numpy(weight) != before[id(weight)]).any()
    }
    assert changed
    assert changed <= trained


def test_a_failure_in_the_first_step_loses_no_weights():
    task = CASE["TextEmbedder"].make(seed=0)
    expected = task.encode_text(TEXTS)
    task.compile(keras.optimizers.SGD(0.0), loss="mse")
    right, wrong = np.zeros(expected.shape).tolist(), [[1.0, 2.0]] * 4
    task.fit(TEXTS, right, verbose=0)
    for call in (task.fit, task.evaluate):
        with pytest.raises(Exception, match=r"(?i)shape|size|dimension|incompatible"):
            call(TEXTS, wrong, verbose=0)
        np.testing.assert_allclose(task.encode_text(TEXTS), expected, atol=1e-6)
    task.fit(TEXTS, right, verbose=0)


def test_threads_may_predict_with_one_model():
    task = CASE["TextClassifier"].make(seed=0)
    expected, logits, wrong = task.classify(TEXTS), task.predict(TEXTS, verbose=0), []

    def ask():
        for _ in range(10):
            try:
                if task.classify(TEXTS) != expected:
                    wrong.append("another answer")
                if (task.predict(TEXTS, verbose=0) != logits).any():
                    wrong.append("other logits")
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
