"""Batches that come ready, of a PyDataset, a generator or a DataLoader, raw or as ids."""

import dataclasses

import keras
import numpy as np
import pytest
from small_tasks import CASES

CASE = {case.name: case for case in CASES}
NAMES = ["TextClassifier", "NextSentencePredictor", "MaskedLM", "TokenClassifier", "Pretrainer"]


class Pairwise(keras.utils.PyDataset):
    """The samples of a case, two a batch."""

    def __init__(self, case, labelled=True):
        super().__init__()
        self.case, self.labelled, self.epochs = case, labelled, 0

    def __len__(self):
        return 2

    def __getitem__(self, index):
        part = slice(2 * index, 2 * index + 2)
        x = self.case.x
        x = tuple(column[part] for column in x) if isinstance(x, tuple) else x[part]
        if self.case.y is None or not self.labelled:
            return (x,)
        return x, self.case.y[part]

    def on_epoch_end(self):
        self.epochs += 1


def generator(case, **options):
    return (Pairwise(case, **options)[index] for index in range(2))


def model_of(name):
    case = CASE[name]
    if name == "TextClassifier":  # whose head has dropout
        case = dataclasses.replace(case, arguments={**case.arguments, "dropout": 0.0})
    task = case.make(seed=1, attention_dropout=0.0)
    task.compile(optimizer=keras.optimizers.SGD(0.02), run_eagerly=True)
    return task


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_lists(name):
    case, task = CASE[name], model_of(name)
    given = {} if case.y is None else {"y": case.y}
    expected = task.evaluate(case.x, **given, batch_size=2, verbose=0)
    for data in (Pairwise(case), generator(case)):
        task.preprocessor.seed = case.preprocessor.get("seed")
        found = task.evaluate(data, verbose=0)
        assert np.all(np.isfinite(found))
        if name != "MaskedLM":  # which hides other tokens, batch by batch
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    logits = task.predict(case.x, batch_size=2, verbose=0)
    if name in ("TextClassifier", "NextSentencePredictor"):
        # Negative control: labels in another order.
        other = task.evaluate(case.x, case.y[::-1], batch_size=2, verbose=0)
        assert other != pytest.approx(expected, abs=1e-4)
        for data in (Pairwise(case, labelled=False), generator(case, labelled=False)):
            found = task.predict(data, verbose=0)
            np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)


def test_training_is_that_of_lists_in_their_order():
    case = CASE["TextClassifier"]
    expected, task = model_of("TextClassifier"), model_of("TextClassifier")
    history = expected.fit(case.x, case.y, batch_size=2, shuffle=False, epochs=2, verbose=0).history
    data = Pairwise(case)
    validation = {"validation_data": generator(case), "validation_steps": 2}
    losses = task.fit(data, shuffle=False, verbose=0, **validation).history["loss"]
    losses += task.fit(data, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(losses, history["loss"], rtol=1e-4)
    assert data.epochs >= 2  # Keras says so twice
    for ours, theirs in zip(task.weights, expected.weights, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs), atol=1e-5
        )


def test_lists_may_be_validated_with_a_stream():
    case, task = CASE["TextClassifier"], model_of("TextClassifier")
    history = task.fit(case.x, case.y, validation_data=Pairwise(case), verbose=0).history
    after = task.evaluate(case.x, case.y, verbose=0, return_dict=True)
    assert history["val_loss"][0] == pytest.approx(after["loss"], rel=1e-4)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX traces the loss that looks on")
def test_lists_are_shuffled_anew_in_each_epoch_beside_a_stream():
    case, seen = CASE["NextSentencePredictor"], []

    def loss(y_true, y_pred):
        seen.extend(int(label) for label in np.ravel(y_true))
        return y_pred[:, 0] * 0.0

    task = case.make()
    task.compile(optimizer="sgd", loss=loss, metrics=None, run_eagerly=True)
    x = tuple(list(column) * 4 for column in case.x)
    options = {"validation_data": Pairwise(case), "batch_size": 4, "epochs": 2, "verbose": 0}
    task.fit(x, [0, 1] * 8, **options)
    trained = seen[-40:]  # sixteen and four an epoch
    assert sorted(trained[:16]) == sorted(trained[20:36]) == [0] * 8 + [1] * 8
    assert trained[:16] != trained[20:36]


def test_names_of_classes_have_weights_in_a_stream():
    case = CASE["TextClassifier"]
    weighted = model_of("TextClassifier")
    loss = weighted.fit(
        Pairwise(case), class_weight={"bad": 3.0, "good": 1.0}, shuffle=False, verbose=0
    ).history["loss"]
    plain = model_of("TextClassifier").fit(Pairwise(case), shuffle=False, verbose=0)
    assert loss[0] > 1.3 * plain.history["loss"][0]


def test_pytorchs_loader():
    torch = pytest.importorskip("torch")
    case, task = CASE["TextClassifier"], model_of("TextClassifier")
    labels = [["bad", "good"].index(y) for y in case.y]
    expected = task.evaluate(case.x, case.y, batch_size=2, verbose=0)
    loader = torch.utils.data.DataLoader(list(zip(case.x, labels, strict=True)), batch_size=2)
    np.testing.assert_allclose(task.evaluate(loader, verbose=0), expected, rtol=1e-4)
    texts = torch.utils.data.DataLoader(case.x, batch_size=2)
    logits = task.predict(case.x, batch_size=2, verbose=0)
    np.testing.assert_allclose(task.predict(texts, verbose=0), logits, rtol=1e-4, atol=1e-5)
    ids = task.preprocessor(case.x)
    rows = [({name: ids[name][i] for name in ids}, labels[i]) for i in range(4)]
    loader = torch.utils.data.DataLoader(rows, batch_size=2)
    history = task.fit(loader, epochs=2, validation_data=loader, verbose=0).history
    assert history["loss"][0] == pytest.approx(expected[0], rel=0.2)
    assert history["val_loss"][1] < history["val_loss"][0]


def test_what_is_wrong_in_a_batch_is_said():
    task = model_of("TextClassifier")
    with pytest.raises(ValueError, match="none of the class names bad, good"):
        task.fit(((["a text"], ["ugly"]) for _ in range(2)), verbose=0)
    for unlabelled in (task.fit, task.evaluate):
        with pytest.raises(ValueError, match="learns from labels: give y, a label for each"):
            unlabelled(((["a text"],) for _ in range(2)), verbose=0)
    with pytest.raises(ValueError, match=r"give a list of texts .*, not a text"):
        task.predict(iter(["a text"]), verbose=0)
    ids = {name: np.asarray(array) for name, array in task.preprocessor(["a"]).items()}
    ids["token_ids"] = ids["token_ids"] + 1000
    with pytest.raises(ValueError, match="token_ids must be from 0 to 39"):
        task.predict((ids for _ in range(1)), verbose=0)
