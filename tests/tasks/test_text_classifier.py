from pathlib import Path

import keras
import numpy as np
import pytest
import torch
import transformers
from bert_reference import tokenizer
from heads import SMALL_TOLERANCE, both, reference_outputs, rms
from huggingface import SMALL, largest_difference, random_inputs
from models import as_numpy, encoder_inputs, randomize, small_backbone
from small_tasks import PIECES, TEXTS

from keras_megatron import (
    MegatronBertTextClassifier,
    MegatronBertTextClassifierPreprocessor,
    MegatronBertTokenizer,
)
from keras_megatron.checkpoints import task_arguments
from keras_megatron.finetuning.records import read_records

NAME = "MegatronBertForSequenceClassification"
LABELS = [2, 0, 1, 1]


@pytest.fixture(scope="module")
def inputs():
    return encoder_inputs(random_inputs(SMALL["vocab_size"]))


@pytest.fixture(scope="module")
def reviews():
    """Real sentences and their labels; tests/data/README.md says from where."""
    data = Path(__file__).parents[1] / "data" / "sentiment.tsv"
    records = [record.values for record in read_records(f"{data}:train")][:64]
    return [record["text"] for record in records], [record["label"] for record in records]


def small_classifier(num_classes=2, class_names=("bad", "good"), **arguments):
    preprocessor = MegatronBertTextClassifierPreprocessor(
        MegatronBertTokenizer(PIECES), sequence_length=20, class_names=class_names
    )
    backbone = small_backbone(vocabulary_size=40, num_layers=1)
    classifier = MegatronBertTextClassifier(backbone, num_classes, preprocessor, **arguments)
    randomize(classifier)
    return classifier


# === Parity ===


@pytest.mark.parity
def test_logits_equal_hugging_face(inputs, tmp_path, parity):
    reference, classifier = both(MegatronBertTextClassifier, NAME, tmp_path, num_labels=3)
    expected = reference_outputs(reference, inputs).logits.numpy()
    assert np.abs(expected).max() > 0.1
    parity("text classifier logits", as_numpy(classifier(inputs)), expected, SMALL_TOLERANCE)

    # Negative controls: the order of the classes, and which text is the second of a pair.
    swapped = {**inputs, "segment_ids": 1 - inputs["segment_ids"]}
    assert largest_difference(as_numpy(classifier(swapped)), expected) > SMALL_TOLERANCE
    kernel = as_numpy(classifier.classifier.kernel)
    classifier.classifier.kernel.assign(np.roll(kernel, 1, axis=1))
    assert largest_difference(as_numpy(classifier(inputs)), expected) > SMALL_TOLERANCE


@pytest.mark.parametrize(("problem", "count", "labels"), [
    ("single_label_classification", 3, LABELS),
    ("regression", 1, [0.5, -1.0, 2.0, 0.0]),
    ("multi_label_classification", 3, [[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]]),
])  # fmt: skip
def test_loss_equals_hugging_faces(problem, count, labels, inputs, tmp_path):
    config = {"num_labels": count, "problem_type": problem}
    reference, classifier = both(MegatronBertTextClassifier, NAME, tmp_path, **config)
    assert classifier.multi_label == (problem == "multi_label_classification")
    dtype = torch.long if problem.startswith("single") else torch.float
    expected = reference_outputs(reference, inputs, labels=torch.tensor(labels, dtype=dtype)).loss
    labels = np.array(labels, "int32" if dtype == torch.long else "float32")
    loss = float(classifier.test_on_batch(inputs, labels)[0])
    assert loss == pytest.approx(expected.item(), abs=2e-5)
    assert abs(float(classifier.test_on_batch(inputs, labels[::-1])[0]) - loss) > 1e-4
    if dtype == torch.long:
        one_hot = np.eye(count, dtype="float32")[labels]
        assert float(classifier.test_on_batch(inputs, one_hot)[0]) == pytest.approx(loss, abs=1e-6)


def test_the_problem_type_is_exported(tmp_path):
    for number, (classes, multi_label) in enumerate(((1, False), (3, False), (3, True))):
        backbone = small_backbone(num_layers=1)
        classifier = MegatronBertTextClassifier(backbone, classes, multi_label=multi_label)
        classifier.export_to_transformers(tmp_path / str(number))
        loaded = MegatronBertTextClassifier.from_preset(
            str(tmp_path / str(number)), preprocessor=None
        )
        assert (loaded.num_classes, loaded.multi_label) == (classes, multi_label)
        config = transformers.AutoConfig.from_pretrained(tmp_path / str(number))
        assert config.problem_type.startswith(("regression", "single", "multi")[number])


@pytest.mark.backend_independent
@pytest.mark.parametrize(("count", "problem", "message"), [
    (1, "multi_label_classification", "with 1 labels: MegatronBertTextClassifier has only regress"),
    (3, "regression", "with 3 labels: .* only single_label_classification or multi_label_class"),
    (3, ["regression"], r"problem_type=\['regression'\]"),
])  # fmt: skip
def test_problem_types_without_a_loss_are_refused(count, problem, message):
    config = {"id2label": {str(index): "a" for index in range(count)}, "problem_type": problem}
    with pytest.raises(ValueError, match=message):
        task_arguments(MegatronBertTextClassifier, config)


def test_soft_labels_are_those_of_torch(inputs, tmp_path):
    reference, classifier = both(MegatronBertTextClassifier, NAME, tmp_path, num_labels=3)
    soft = np.random.default_rng(0).dirichlet(np.ones(3), size=4).astype("float32")
    logits = reference_outputs(reference, inputs).logits
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(soft)).item()
    loss, accuracy = classifier.test_on_batch(inputs, soft)
    assert float(loss) == pytest.approx(expected, abs=2e-5)
    right = logits.numpy().argmax(axis=1) == soft.argmax(axis=1)
    assert float(accuracy) == pytest.approx(right.mean())


def test_bfloat16_is_as_close_as_hugging_faces(inputs, tmp_path):
    reference, _ = both(MegatronBertTextClassifier, NAME, tmp_path, num_labels=3)
    exact = reference_outputs(reference, inputs).logits.numpy()
    classifier = MegatronBertTextClassifier.from_preset(
        str(tmp_path), preprocessor=None, dtype="bfloat16"
    )
    ours = as_numpy(keras.ops.cast(classifier(inputs), "float32"))
    theirs = reference_outputs(reference.to(torch.bfloat16), inputs).logits.float().numpy()
    assert rms(ours, exact) <= 3 * rms(theirs, exact)


def test_the_names_of_a_folders_classes_are_taken(tmp_path):
    names = {0: "bad", 1: "fair", 2: "good"}
    reference, _ = both(
        MegatronBertTextClassifier, NAME, tmp_path, id2label=names, vocab_size=len(PIECES)
    )
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES))
    classifier = MegatronBertTextClassifier.from_preset(str(tmp_path))
    assert set(classifier.classify(TEXTS[0])["scores"]) == set(names.values())
    assert classifier.num_classes == reference.num_labels


# === Training ===


def test_fit_on_real_sentences_learns(reviews):
    texts, labels = reviews
    preprocessor = MegatronBertTextClassifierPreprocessor(
        tokenizer("uncased"), sequence_length=40, class_names=["neg", "pos"]
    )
    backbone = small_backbone(vocabulary_size=30522, num_layers=1, dropout=0.0)
    classifier = MegatronBertTextClassifier(backbone, 2, preprocessor)
    classifier.compile(optimizer=keras.optimizers.Adam(3e-3))
    validation = (texts[:16], labels[:16])
    history = classifier.fit(
        texts, labels, batch_size=16, epochs=8, validation_data=validation, verbose=0
    ).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert history["val_accuracy"][-1] > 0.8
    answers = classifier.classify(texts)
    share = np.mean(
        [answer["label"] == label for answer, label in zip(answers, labels, strict=True)]
    )
    assert share == pytest.approx(classifier.evaluate(texts, labels, verbose=0)[1])


def test_labels_in_all_forms_give_the_same_loss():
    classifier = small_classifier()
    losses = [
        classifier.evaluate(TEXTS, labels, verbose=0)[0]
        for labels in (
            ["good", "bad", "bad", "good"],
            [1, 0, 0, 1],
            np.array([1, 0, 0, 1], "int64"),
            [[0, 1], [1, 0], [1, 0], [0, 1]],
            np.array(["good", "bad", "bad", "good"]),
        )
    ]
    assert losses == pytest.approx([losses[0]] * len(losses), abs=1e-6)


def test_probabilities_train_and_classes_validate():
    classifier = small_classifier()
    history = classifier.fit(
        TEXTS,
        np.full((4, 2), 0.5),
        validation_data=(TEXTS, ["good", "bad", "bad", "good"]),
        validation_freq=1,
        verbose=0,
    ).history
    expected = classifier.evaluate(TEXTS, [1, 0, 0, 1], verbose=0)
    assert [history["val_loss"][0], history["val_accuracy"][0]] == pytest.approx(expected, abs=1e-5)


def test_regression_and_multi_label_fit_and_answer():
    regression = small_classifier(1, None)
    regression.compile(optimizer=keras.optimizers.Adam(1e-2))
    regression.fit(TEXTS, [1, 2.5, 3, 4], epochs=30, verbose=0)
    scores = [answer["score"] for answer in regression.classify(TEXTS)]
    assert np.corrcoef(scores, [1, 2.5, 3, 4])[0, 1] > 0.8
    assert set(regression.classify(TEXTS[0])) == {"score"}

    multiple = small_classifier(2, multi_label=True)
    logits = multiple.predict(TEXTS, verbose=0)
    for answer, row in zip(multiple.classify(TEXTS), logits, strict=True):
        np.testing.assert_allclose(list(answer["scores"].values()), 1 / (1 + np.exp(-row)), 1e-5)
        chosen = [name for name, logit in zip(("bad", "good"), row, strict=True) if logit > 0]
        assert answer["labels"] == chosen


def test_classify_gives_the_softmax_of_the_logits():
    classifier = small_classifier()
    pairs = (TEXTS, TEXTS[::-1])
    logits = classifier.predict(pairs, batch_size=3, verbose=0)
    odds = np.exp(logits)
    expected = odds / odds.sum(axis=1, keepdims=True)
    answers = classifier.classify(pairs, batch_size=3)
    scores = [list(answer["scores"].values()) for answer in answers]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    for answer, row in zip(answers, expected, strict=True):
        assert answer["label"] == ("bad", "good")[row.argmax()]
        assert answer["score"] == max(answer["scores"].values())
    single = classifier.classify((TEXTS[1], TEXTS[2]))
    assert single["scores"] == pytest.approx(answers[1]["scores"], abs=1e-6)
    assert classifier.classify([]) == []
    assert isinstance(small_classifier(2, None).classify(TEXTS[0])["label"], int)

    probabilities = small_classifier(activation="softmax")
    assert probabilities.classify(pairs)[0]["scores"] == pytest.approx(
        answers[0]["scores"], abs=1e-6
    )


def test_it_takes_tf_data():
    import tensorflow as tf

    classifier = small_classifier()
    labels = ["good", "bad", "bad", "good"]
    pairs = (TEXTS, TEXTS[::-1])
    dataset = tf.data.Dataset.from_tensor_slices((pairs, labels)).batch(2)
    scores = classifier.evaluate(dataset, verbose=0)
    assert scores == pytest.approx(classifier.evaluate(pairs, labels, verbose=0), abs=1e-5)
    x, y = next(iter(dataset.map(classifier.preprocessor)))
    eager_x, eager_y = classifier.preprocessor((TEXTS[:2], TEXTS[:1:-1]), labels[:2])
    for name in eager_x:
        np.testing.assert_array_equal(x[name], eager_x[name])
    np.testing.assert_array_equal(y, eager_y)
    with pytest.raises(tf.errors.InvalidArgumentError, match="none of the class names"):
        list(tf.data.Dataset.from_tensors((TEXTS, ["ugly"] * 4)).map(classifier.preprocessor))


# === Bad input ===


@pytest.mark.parametrize(("labels", "message"), [
    ([0, 1, 2, 0], "labels must be integers from 0 to 1, but label 2 is 2"),
    ([0, -1, 0, 0], "label 1 is -1"),
    ([0, 0.5, 1, 1], "label 1 is 0.5"),
    ([0, 1, float("nan"), 0], "label 2 is nan"),
    (["good", "bad", "ugly", "bad"], "label 2 is 'ugly', which is none of the class names bad"),
    (["good", 1, "bad", 0], "label 1 is 1, which is none of the class names"),
    ([[1, 0], [0, 1], [1], [0, 1]], "rows of the same length"),
    ([[1, 0, 0]] * 4, r"of shape \(samples, 2\), not \(4, 3\)"),
    ([[0, 1], [1, 2], [0, 1], [0, 1]], "must be from 0 to 1, but row 1"),
    ([None] * 4, "labels .* must be integers"),
    ([0, 1], "4 samples but 2 labels"),
])  # fmt: skip
def test_labels_that_are_none_are_refused(labels, message):
    classifier = small_classifier()
    with pytest.raises(ValueError, match=message):
        classifier.fit(TEXTS, labels, verbose=0)
    with pytest.raises(ValueError, match=message):
        classifier.fit(TEXTS, [0] * 4, validation_data=(TEXTS, labels), verbose=0)
    with pytest.raises(ValueError, match=message):
        classifier.evaluate(TEXTS, labels, verbose=0)


def test_names_without_class_names_and_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"label 0 is 'good'.*class_names"):
        small_classifier(2, None).fit(TEXTS, ["good"] * 4, verbose=0)
    with pytest.raises(ValueError, match="must be a finite number a sample"):
        small_classifier(1, None).fit(TEXTS, [0.0, float("inf"), 1, 1], verbose=0)


@pytest.mark.parametrize(("x", "message"), [
    ([], "there are no texts"),
    (["it was", None], "text 1 must be a str, not NoneType"),
    ((TEXTS[:2], ["it", 3]), "second text 1 must be a str, not int: 3"),
    ((TEXTS, TEXTS, TEXTS), "x must be a list of texts or a tuple of two"),
    ((TEXTS, TEXTS[:2]), "columns of x must be of one length"),
])  # fmt: skip
def test_what_is_no_text_is_refused(x, message):
    classifier = small_classifier()
    with pytest.raises(ValueError, match=message):
        classifier.predict(x, verbose=0)
    if x:
        with pytest.raises(ValueError, match=message):
            classifier.classify(x)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"num_classes": 3}, "has 2 class_names but num_classes is 3"),
    ({"num_classes": None}, "num_classes must be a positive integer, not None"),
    ({"num_classes": 0, "class_names": None}, "num_classes must be a positive integer, not 0"),
    ({"class_names": ["a", "a"]}, "'a' is there more than once"),
    ({"class_names": []}, "class_names is empty"),
    ({"class_names": [1, 2]}, "class_names must be strings"),
    ({"activation": "tanh"}, r"activation must be None \(logits\) or 'softmax', not 'tanh'"),
    ({"num_classes": 1, "class_names": None, "multi_label": True}, "at least two classes"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_classifier(**arguments)


def test_a_preset_without_a_head_of_this_kind_says_what_is_missing(tmp_path):
    small_classifier().save_to_preset(tmp_path / "classifier")
    changed = MegatronBertTextClassifier.from_preset(
        str(tmp_path / "classifier"), num_classes=3, preprocessor=None
    )
    assert changed.num_classes == 3  # with a new head
    with pytest.raises(ValueError, match="has 2 class_names but num_classes is 3"):
        MegatronBertTextClassifier.from_preset(str(tmp_path / "classifier"), num_classes=3)
    changed.backbone.save_to_preset(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"not None: .* no head for the task, give num_classes"):
        MegatronBertTextClassifier.from_preset(str(tmp_path / "encoder"), preprocessor=None)
