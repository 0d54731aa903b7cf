"""Training on packed rows is training on padded ones: the same losses, step by step."""

import grain
import keras
import numpy as np
import pytest
from small_tasks import CASES, TEXTS, Case

from keras_megatron import MegatronBertTextClassifier
from keras_megatron.finetuning.recipe import adamw
from keras_megatron.tasks import packed_training

PACKED = [case for case in CASES if case.learns]  # an embedder has no loss
SHORT = [text.split(",")[0] for text in TEXTS]


def short_samples(case: Case) -> tuple:
    """Return samples of different lengths, and their labels."""
    if case.name == "TokenClassifier":
        x = [words[: 2 + 3 * index] for index, words in enumerate(case.x)]
        return x * 4, [tags[: 2 + 3 * index] for index, tags in enumerate(case.y)] * 4
    if case.name == "MultipleChoice":  # some samples have three choices, the others two
        return tuple(list(column) * 4 for column in case.x), list(case.y) * 4
    texts = [text[: 20 + 5 * index] for index, text in enumerate(SHORT)] * 4
    y = None if case.y is None else list(case.y) * 4
    return ((texts, texts[::-1]) if isinstance(case.x, tuple) else texts), y


def losses(case: Case, monkeypatch, packed: bool, wrong=None) -> tuple[list, list]:
    """Train for three epochs without shuffling; return losses and accuracies, and batches."""
    seen = []

    def pack(task, batches):
        made = packed_training.pack_batches(task, batches) if packed else batches
        if wrong is not None:
            made = made.map(wrong)
        seen.extend(made[index] for index in range(len(made)))
        return made

    monkeypatch.setattr("keras_megatron.tasks.raw_samples.pack_batches", pack)
    monkeypatch.setattr(packed_training, "length_for_all", lambda longest: 128)  # all share rows
    task = case.make(seed=0, attention_dropout=0.0, max_sequence_length=64)
    task.preprocessor.sequence_length = 64
    if hasattr(task.preprocessor, "seed"):
        task.preprocessor.seed = 3
    task.compile(optimizer=adamw(1e-2, total_steps=24))
    x, y = short_samples(case)
    labels = {} if y is None else {"y": y}
    history = task.fit(x, **labels, batch_size=8, epochs=3, shuffle=False, verbose=0).history
    evaluated = task.evaluate(x, **labels, batch_size=8, verbose=0)
    return [value for values in history.values() for value in values] + list(evaluated), seen


@pytest.mark.parametrize("case", PACKED, ids=lambda case: case.name)
def test_losses_are_those_of_padded_rows(case: Case, monkeypatch):
    expected, _ = losses(case, monkeypatch, packed=False)
    found, batches = losses(case, monkeypatch, packed=True)
    assert all("document_ids" in x for x, *_ in batches)
    assert len(batches[0][0]["token_ids"]) <= 4  # rows of 128, for 8 texts or 20 choices
    np.testing.assert_allclose(found, expected, atol=2e-5)

    def pairs(batch):  # the negative control: texts that see each other
        x, *rest = batch
        ids = (x["document_ids"] + 1) // 2
        return ({**x, "document_ids": ids}, *rest)

    wrong, _ = losses(case, monkeypatch, packed=True, wrong=pairs)
    assert np.abs(np.array(wrong) - expected).max() > 1e-3


def test_full_rows_and_other_losses_are_left_alone():
    case = next(case for case in CASES if case.name == "TokenClassifier")
    task = case.make()
    long, short = (
        task.preprocessor.dataset([["it"] * count] * 8, [["other"] * count] * 8, batch_size=8)
        for count in (18, 1)
    )
    task.compile(loss="sparse_categorical_crossentropy")
    assert packed_training.pack_batches(task, short) is short
    task.compile()
    assert isinstance(packed_training.pack_batches(task, short), grain.MapDataset)
    assert packed_training.pack_batches(task, short) is not short
    assert packed_training.pack_batches(task, long) is long


def test_a_text_classifier_of_real_length_is_packed():
    classifier = MegatronBertTextClassifier.from_preset("megatron_bert_tiny_uncased", num_classes=2)
    batches = classifier.preprocessor.dataset(TEXTS * 8, [0, 1] * 16, batch_size=32)
    x, y = packed_training.pack_batches(classifier, batches)[0]
    # Padded they would be 32. Rows are rounded up where they are compiled.
    shape = {"jax": (6, 128), "tensorflow": (5, 128), "torch": (5, 112)}[keras.config.backend()]
    assert x["token_ids"].shape == shape
    assert len(x["cls_positions"]) == len(y) == 32
    assert isinstance(keras.tree.flatten(x)[0], np.ndarray)
    assert len(keras.tree.flatten(x)[0]) == 32  # by which Keras weighs a batch's loss


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="as much is seen on one backend")
def test_metrics_of_samples_see_samples():
    case = next(case for case in CASES if case.name == "TokenClassifier")
    task = case.make(seed=0)

    def has_second_class(y_true, y_pred):
        return keras.ops.cast(keras.ops.any(y_true == 1, axis=-1), "float32")

    task.compile(metrics=[has_second_class], run_eagerly=True)
    x, y, weight = task.preprocessor(case.x, case.y)
    expected = task.evaluate(x, y, sample_weight=weight, return_dict=True, verbose=0)
    found = task.evaluate(case.x, case.y, return_dict=True, verbose=0)
    assert found == pytest.approx(expected, rel=1e-5)
