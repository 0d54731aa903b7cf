"""What `fit` makes of the samples it is given: their order, and Series that have an index."""

import collections.abc
import dataclasses
import warnings

import keras
import numpy as np
import pandas as pd
import pytest
from small_tasks import CASES, PAIRS, TEXTS

from keras_megatron.tasks.samples import batches_of_arrays, by_position

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
    twice = batches_of_arrays(arrays, 4).repeat(2)
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


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX traces the loss that looks on")
@pytest.mark.parametrize("split", [0.0, 0.2])
@pytest.mark.parametrize("kind", [np.asarray, keras.ops.convert_to_tensor])
def test_tensors_and_ids_that_are_split_are_shuffled(kind, split):
    case = CASE["NextSentencePredictor"]
    task, seen = case.make(), []

    def loss(y_true, y_pred):
        seen.extend(int(label) for label in np.ravel(y_true))
        return y_pred[:, 0] * 0.0

    ids = task.preprocessor(tuple(list(column) * 5 for column in PAIRS))
    ids = {name: kind(array) for name, array in ids.items()}
    task.compile(optimizer="sgd", loss=loss, metrics=None, run_eagerly=True)
    options = {"batch_size": 4, "epochs": 2, "verbose": 0, "validation_split": split}
    task.fit(ids, np.arange(20), **options)
    trained = 16 if split else 20
    order = [label for label in seen if label < trained][-2 * trained :]
    for epoch in (order[:trained], order[trained:]):
        assert sorted(epoch) == list(range(trained)) != epoch
    assert order[:trained] != order[trained:]
    assert (19 in seen) or not split


def test_ids_with_a_split_are_validated_by_the_last_ones():
    case = CASE["TextClassifier"]
    task = case.make(seed=1)
    task.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    ids, labels = task.preprocessor(case.x, case.y)
    history = task.fit(ids, labels, validation_split=0.5, verbose=0).history
    last = {name: np.asarray(array)[2:] for name, array in ids.items()}
    expected = task.evaluate(last, np.asarray(labels)[2:], verbose=0, return_dict=True)
    assert history["val_loss"][0] == pytest.approx(expected["loss"], rel=1e-4)


def test_classes_have_weights_by_name():
    case = CASE["TextClassifier"]
    losses = []
    for weights in ({"good": 1.0, "bad": 9.0}, {1: 1.0, 0: 9.0}, None):
        task = case.make(seed=1)
        task.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
        keras.utils.set_random_seed(0)
        losses.append(task.fit(case.x, case.y, class_weight=weights, verbose=0).history["loss"][0])
        on_batch = task.train_on_batch(case.x, case.y, class_weight=weights)
        losses.append(float(np.ravel(on_batch)[0]))
    np.testing.assert_allclose(losses[:2], losses[2:4], rtol=0.2)  # there is dropout
    assert losses[0] > 2 * losses[4]
    for weights, message in (
        ({"ugly": 1.0}, "class_weight has the key 'ugly', which is none of the class names"),
        ({2: 1.0}, "keys of class_weight must be integers from 0 to 1, or names, not 2"),
        ([1.0, 2.0], "class_weight must be a dict of a weight a class, not"),
    ):
        with pytest.raises(ValueError, match=message):
            task.fit(case.x, case.y, class_weight=weights, verbose=0)


@pytest.mark.backend_independent
@pytest.mark.parametrize(("name", "arguments", "y"), [
    ("TokenClassifier", {}, None),
    ("MaskedLM", {}, None),
    ("TextClassifier", {"num_classes": 1}, [0.5, 1.0, 2.0, 0.0]),
    ("TextClassifier", {"num_classes": 2, "multi_label": True}, [[0, 1]] * 4),
])  # fmt: skip
def test_labels_that_are_no_class_a_sample_have_no_class_weight(name, arguments, y):
    case = CASE[name]
    preprocessor = case.preprocessor if y is None else {}
    arguments = {**case.arguments, **arguments}
    case = dataclasses.replace(case, arguments=arguments, preprocessor=preprocessor)
    with pytest.raises(ValueError, match="class_weight is for labels that are one class a sample"):
        case.make().fit(case.x, case.y if y is None else y, class_weight={0: 1.0}, verbose=0)


def test_some_classes_have_weights():
    tensorflow = pytest.importorskip("tensorflow")
    case = CASE["TextClassifier"]
    case = dataclasses.replace(case, arguments={**case.arguments, "dropout": 0.0})
    numbers = [["bad", "good"].index(y) for y in case.y]
    data = tensorflow.data.Dataset.from_tensor_slices((case.x, numbers)).batch(4)
    for weights in ({"bad": 3.0}, {"good": 3.0}):
        losses = []
        for given in ((case.x, case.y), (data,)):
            task = case.make(seed=1, dropout=0.0, attention_dropout=0.0)
            task.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
            options = {"shuffle": False} if len(given) == 2 else {}
            history = task.fit(*given, class_weight=weights, verbose=0, **options)
            losses.append(history.history["loss"][0])
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({0: float("nan")}, r"class_weight\[0\] must be a number of at least 0, not nan"),
        ({"bad": "2"}, r"class_weight\['bad'\] must be a number of at least 0, not '2'"),
        ({0: -1.0}, r"class_weight\[0\] must be a number of at least 0"),
        (np.array([1.0, 2.0]), "class_weight must be a dict"),
    ],
)
def test_impossible_class_weights_are_refused(weights, message):
    case = CASE["TextClassifier"]
    task = case.make()
    for call in (task.fit, task.train_on_batch):
        with pytest.raises(ValueError, match=message):
            call(case.x, case.y, class_weight=weights)
    with pytest.raises(ValueError, match="class_weight is for labels that are one class"):
        CASE["Pretrainer"].make().train_on_batch(PAIRS, class_weight={0: 1.0})


def test_predict_stops_after_so_many_steps():
    case = CASE["TextClassifier"]
    task = case.make(seed=1)
    task.run_eagerly = True
    whole = task.predict(case.x, batch_size=3, verbose=0)
    for steps, rows in ((1, 3), (2, 4), (9, 4)):
        part = task.predict(case.x, batch_size=3, steps=steps, verbose=0)
        np.testing.assert_allclose(part, whole[:rows], atol=1e-6)


@pytest.mark.parametrize("size", [0, -1, 2.5, "4", True])
def test_impossible_batch_sizes_are_refused(size):
    case = CASE["TextClassifier"]
    task = case.make()
    for call in (task.fit, task.evaluate, lambda x, y, **options: task.predict(x, **options)):
        with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, not"):
            call(case.x, case.y, batch_size=size)


class Lazy(collections.abc.Sequence):
    """A column that reads a value when it is asked for it, as those of `datasets`."""

    def __init__(self, values):
        self._values = values

    def __len__(self):
        return len(self._values)

    def __getitem__(self, index):
        return self._values[index]


class Arrow:
    """A column as Arrow's: no sequence, without a shape."""

    def __init__(self, values):
        self._values = values

    def __len__(self):
        return len(self._values)

    def to_pylist(self):
        return self._values


def columns(kind: str, values: list):
    """Return values as another library's column that is no list, array or Series."""
    if kind == "TensorFlow":
        return pytest.importorskip("tensorflow").constant(values)
    if kind in ("lazy", "Arrow"):
        return {"lazy": Lazy, "Arrow": Arrow}[kind](values)
    return pd.Series(values, dtype="string").array


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX traces the loss that looks on")
@pytest.mark.parametrize("kind", ["pandas", "TensorFlow", "lazy", "Arrow"])
def test_columns_of_other_libraries_are_raw_samples(kind):
    case = CASE["TextClassifier"]
    task, seen = case.make(), []

    def watched(y_true, y_pred):
        seen.append(keras.ops.convert_to_numpy(y_true).ravel().tolist())
        return keras.ops.mean(y_pred)

    task.compile(loss=watched, metrics=[], weighted_metrics=[], run_eagerly=True)
    keras.utils.set_random_seed(0)
    labels = [0] * 32 + [1] * 32
    task.fit(columns(kind, TEXTS * 16), labels, batch_size=32, verbose=0)
    assert all(8 < sum(batch) < 24 for batch in seen[-2:])  # unshuffled 0 and 32
    task.compile(run_eagerly=True)
    with pytest.raises(ValueError, match="7"):
        task.fit(columns(kind, TEXTS), [0, 1, 0, 7], verbose=0)
    given, expected = task.classify(columns(kind, TEXTS)), task.classify(TEXTS)
    assert [answer["label"] for answer in given] == [answer["label"] for answer in expected]
    tokenizer = task.preprocessor.tokenizer
    assert tokenizer.tokenize(columns(kind, TEXTS)) == tokenizer.tokenize(TEXTS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_16_bits_are_not_trained(dtype):
    """Keras's Adam changes no weight in bfloat16, where its beta_2 is 1."""
    case = CASE["TextClassifier"]
    task = case.make(dtype=dtype)
    batch = (case.x, case.y)
    for call in (
        lambda: task.fit(*batch, verbose=0),
        lambda: task.fit(iter([batch]), verbose=0),
        lambda: task.train_on_batch(*batch),
    ):
        with pytest.raises(ValueError, match=f"rounds updates away: use 'mixed_{dtype}'"):
            call()
    task.evaluate(*batch, verbose=0)
    before = task.get_weights()
    task.compile(keras.optimizers.SGD(1.0), jit_compile=False)
    task.fit(*batch, verbose=0)
    assert any((a != b).any() for a, b in zip(before, task.get_weights(), strict=True))


def test_tables_are_refused():
    task = CASE["TextClassifier"].make()
    task.compile()
    table = pd.DataFrame({"text": TEXTS, "label": [0, 1, 0, 1]})
    calls = (
        lambda: task.fit(table, table["label"], verbose=0),
        lambda: task.evaluate(table, table["label"], verbose=0),
        lambda: task.predict(table, verbose=0),
        lambda: task.train_on_batch(table, table["label"]),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"x is a table of text, label: .*, as in x\['text'\]"):
            call()


class Seen(keras.losses.Loss):
    """A loss that notes the labels it is given."""

    def __init__(self):
        super().__init__()
        self.labels = []

    def call(self, y_true, y_pred):
        self.labels.append(keras.ops.convert_to_numpy(y_true).ravel().tolist())
        return keras.ops.mean(y_pred, axis=-1)


def _endless():
    while True:
        yield TEXTS, np.full(4, 9)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX traces the loss that looks on")
@pytest.mark.parametrize("kind", ["raw", "ids", "beside a stream"])
@pytest.mark.parametrize("steps", [None, 2])
def test_a_later_epoch_has_the_order_that_is_its_own(kind, steps):
    case = CASE["TextClassifier"]

    def labels(**epochs):
        task, loss = case.make(seed=0), Seen()
        task.compile(loss=loss, metrics=[], weighted_metrics=[], run_eagerly=True)
        x = TEXTS * 2 if kind != "ids" else task.preprocessor(TEXTS * 2)
        y, options = np.arange(8), {"batch_size": 2, "steps_per_epoch": steps, "verbose": 0}
        if kind == "beside a stream":
            options["validation_data"] = _endless()
            options["validation_steps"] = 1
        keras.utils.set_random_seed(0)
        task.fit(x, y, **options, **epochs)
        seen = [batch for batch in loss.labels if 9 not in batch]
        return seen[-2 * (steps or 4) :]

    whole = labels(epochs=3)
    assert whole[: len(whole) // 2] != whole[len(whole) // 2 :]
    assert labels(epochs=3, initial_epoch=1) == whole
    assert labels(epochs=2) != whole


@pytest.mark.parametrize("kinds", ["raw raw", "raw ids", "ids raw", "ids ids"])
def test_validation_has_batches_of_its_own(kinds):
    class Counts(keras.callbacks.Callback):
        batches = 0

        def on_test_batch_end(self, batch, logs=None):
            self.batches += 1

    task, counts = CASE["TextClassifier"].make(), Counts()
    y = np.array([0, 1, 0, 1])
    given = {"raw": TEXTS, "ids": task.preprocessor(TEXTS)}
    x, validation = (given[kind] for kind in kinds.split())
    sizes = {"batch_size": 1, "validation_batch_size": 2}
    task.fit(x, y, validation_data=(validation, y), callbacks=[counts], verbose=0, **sizes)
    assert counts.batches == 2
    with pytest.raises(ValueError, match="validation_batch_size must be an integer"):
        task.fit(x, y, validation_data=(validation, y), validation_batch_size=0)
    with pytest.raises(
        ValueError, match=r"must be \(x, y\) or \(x, y, sample_weight\), not 5 parts"
    ):
        task.fit(x, y, validation_data=(validation, y, 3, 4, 5))
    for unlabelled in (TEXTS, np.array(TEXTS), (TEXTS,)):
        with pytest.raises(ValueError, match="learns from labels: give y"):
            task.fit(x, y, validation_data=unlabelled)


def test_a_loss_of_your_own_takes_any_labels_beside_texts():
    task = CASE["TextClassifier"].make(seed=0)
    task.compile(loss="mse", metrics=[], weighted_metrics=[], run_eagerly=True)
    y = np.array([[0.5, -2.0], [1.5, 0.0], [3.0, 1.0], [-1.0, 0.25]], "float32")
    raw = task.evaluate(TEXTS, y, verbose=0)
    assert raw == pytest.approx(np.mean((task.predict(TEXTS, verbose=0) - y) ** 2), rel=1e-4)
    task.fit(TEXTS, y, verbose=0)


@pytest.mark.parametrize("name", ["TextClassifier", "Pretrainer"])
def test_labels_of_one_batch_are_checked(name):
    case = CASE[name]
    task = case.make()
    task.compile(run_eagerly=True)
    for call in (task.train_on_batch, task.test_on_batch):
        assert np.isfinite(call(case.x, case.y)).all()
        with pytest.raises(ValueError, match="5"):
            call(case.x, [0, 1, 0, 5])


@pytest.mark.parametrize("extra", ["attention_mask", "idx", "zzz"])
def test_ids_with_another_name_beside_are_refused(extra):
    """Keras would give each input the array of another one."""
    task = CASE["TextClassifier"].make()
    task.compile(run_eagerly=True)
    ids, y = task.preprocessor(TEXTS), np.array([0, 1, 0, 1])
    more, less = {**ids, extra: np.ones((4, 20), "int32")}, {**ids}
    del less["padding_mask"]
    of_others = {
        "input_ids": ids["token_ids"],
        "token_type_ids": ids["segment_ids"],
        "attention_mask": ids["padding_mask"],
    }
    for inputs, message in (
        (more, f"unknown input '{extra}': MegatronBertTextClassifier takes padding_mask, segm"),
        (less, "the input 'padding_mask' is missing"),
        (of_others, "Hugging Face's input_ids, token_type_ids and attention_mask are token_ids"),
    ):
        for call in (
            lambda x: task.fit(x, y, verbose=0),
            lambda x: task.evaluate(x, y, verbose=0),
            lambda x: task.predict(x, verbose=0),
            task.logits,
            task,
        ):
            with pytest.raises(ValueError, match=message):
                call(inputs)


@pytest.mark.parametrize("size", [0, -2, 1.5])
def test_logits_take_rows_by_a_positive_number(size):
    task = CASE["TextClassifier"].make()
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
        task.logits(task.preprocessor(TEXTS), batch_size=size)


def test_no_rows_are_refused():
    task = CASE["TextClassifier"].make()
    with pytest.raises(ValueError, match="there are no rows"):
        task.logits({name: np.zeros((0, 5), "int32") for name in task.input})


def test_a_backbone_takes_no_rows():
    backbone = CASE["TextClassifier"].make().backbone
    outputs = backbone({name: np.zeros((0, 5), "int32") for name in backbone.input})
    assert outputs["sequence_output"].shape[:2] == (0, 5)
