"""Batches that come ready, of a PyDataset, a generator or a DataLoader, raw or as ids."""

import dataclasses
import warnings

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


@pytest.mark.parametrize("kind", ["PyDataset", "generator", "loader", "lists", "ids"])
def test_names_of_classes_have_weights_in_a_stream(kind):
    """Lists and ids are streamed only in that what validates them is."""
    case = CASE["TextClassifier"]

    def loss(weights, data, **options):
        task = model_of("TextClassifier")
        history = task.fit(*data(task), class_weight=weights, shuffle=False, verbose=0, **options)
        return history.history["loss"][0]

    def loader(_):
        utils = pytest.importorskip("torch").utils.data
        labels = [["bad", "good"].index(y) for y in case.y]
        return (utils.DataLoader(list(zip(case.x, labels, strict=True)), batch_size=2),)

    def lists(task):
        numbers = np.array([["bad", "good"].index(y) for y in case.y])
        return (task.preprocessor(case.x), numbers) if kind == "ids" else (case.x, case.y)

    data = {
        "PyDataset": lambda _: (Pairwise(case),),
        "generator": lambda _: (generator(case),),
        "loader": loader,
    }.get(kind, lists)

    def options():
        if data is not lists:
            return {}
        return {"batch_size": 2, "validation_data": generator(case)}

    weights = {"bad": 3.0, "good": 1.0}
    expected = loss(weights, lambda _: (case.x, case.y), batch_size=2)
    assert loss(weights, data, **options()) == pytest.approx(expected, rel=1e-4)
    assert loss(None, data, **options()) < expected / 1.3


def test_class_weights_stand_alone():
    task = model_of("TextClassifier")
    batch = (["a text"], ["bad"], np.ones(1))
    with pytest.raises(ValueError, match="sample_weight beside it: give one of the two"):
        task.fit(iter([batch]), class_weight={"bad": 2.0}, verbose=0)


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


def test_a_loader_without_batches_is_refused():
    utils = pytest.importorskip("torch").utils.data
    case, task = CASE["TextClassifier"], model_of("TextClassifier")
    samples = list(zip(case.x, [0, 1, 0, 1], strict=True))
    empty = utils.DataLoader(samples, batch_size=8, drop_last=True)
    for call in (task.fit, task.evaluate, task.predict):
        with pytest.raises(ValueError, match="the DataLoader has no batches: give more samples"):
            call(empty, verbose=0)


def test_a_list_is_samples_and_a_tuple_is_samples_with_labels():
    case, task = CASE["TokenClassifier"], model_of("TokenClassifier")
    right = task.predict(case.x, batch_size=2, verbose=0)
    there = np.asarray(task.preprocessor(case.x)["padding_mask"])[..., None]
    for size in (1, 2):
        batches = [case.x[start : start + size] for start in range(0, 4, size)]
        for data in (iter(batches), ((batch,) for batch in batches)):
            found = task.predict(data, verbose=0)
            assert found.shape == right.shape
            np.testing.assert_allclose(found * there, right * there, rtol=1e-4, atol=1e-5)
    ids = task.preprocessor(case.x, case.y)
    with_labels = task.evaluate(iter([ids]), verbose=0)
    assert task.evaluate(iter([list(ids)]), verbose=0) == pytest.approx(with_labels)


def test_lists_of_labels_in_a_loader_stay_with_their_samples():
    torch = pytest.importorskip("torch")
    case = CASE["TextClassifier"]
    case = dataclasses.replace(
        case,
        arguments={"num_classes": 2, "multi_label": True, "dropout": 0.0},
        y=[[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]],
    )
    task = case.make(seed=1)
    task.compile(run_eagerly=True)
    expected = task.evaluate(case.x, np.array(case.y), batch_size=2, verbose=0)
    for convert in (list, torch.tensor):
        samples = [(text, convert(y)) for text, y in zip(case.x, case.y, strict=True)]
        loader = torch.utils.data.DataLoader(samples, batch_size=2)
        np.testing.assert_allclose(task.evaluate(loader, verbose=0), expected, rtol=1e-4)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_stream_is_validated_on_lists_without_a_warning(epochs):
    case, task = CASE["TextClassifier"], model_of("TextClassifier")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Your input ran out of data")
        history = task.fit(
            Pairwise(case),
            validation_data=(case.x, case.y),
            batch_size=2,
            epochs=epochs,
            shuffle=False,
            verbose=0,
        ).history
    assert len(history["val_loss"]) == epochs
    expected = task.evaluate(case.x, case.y, batch_size=2, verbose=0)
    assert history["val_loss"][-1] == pytest.approx(expected[0], rel=1e-4)


def test_raw_datasets_beside_a_stream_are_refused():
    tensorflow = pytest.importorskip("tensorflow")
    case, task = CASE["TextClassifier"], model_of("TextClassifier")
    labels = [["bad", "good"].index(y) for y in case.y]
    raw = tensorflow.data.Dataset.from_tensor_slices((case.x, labels)).batch(2)
    with pytest.raises(ValueError, match="of raw samples beside a generator"):
        task.fit(Pairwise(case), validation_data=raw, shuffle=False, verbose=0)
    with pytest.raises(ValueError, match="of raw samples beside a generator"):
        task.fit(raw, validation_data=Pairwise(case), verbose=0)
    ids = tensorflow.data.Dataset.from_tensor_slices((task.preprocessor(case.x), labels)).batch(2)
    history = task.fit(Pairwise(case), validation_data=ids, shuffle=False, verbose=0).history
    assert history["val_loss"][0] == pytest.approx(
        task.evaluate(case.x, case.y, verbose=0)[0], rel=1e-4
    )


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
