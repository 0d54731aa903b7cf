from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from bert_reference import tokenizer
from huggingface import (
    SMALL,
    largest_difference,
    random_inputs,
    random_model,
    torch_inputs,
)
from models import as_numpy, encoder_inputs, randomize, small_backbone
from seqeval.metrics.sequence_labeling import get_entities

from keras_megatron import MegatronBertTokenClassifier, MegatronBertTokenClassifierPreprocessor
from keras_megatron.finetuning.records import read_records
from keras_megatron.tasks.tagging import join_tags, marks_spans, windows_of

SMALL_TOLERANCE = 2e-5
BIO = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
IOBES = ["O", *(f"{prefix}-{label}" for label in ("PER", "ORG") for prefix in "IBES")]


@pytest.fixture(scope="module")
def inputs():
    return encoder_inputs(random_inputs(SMALL["vocab_size"]))


@pytest.fixture(scope="module")
def sentences():
    """Real sentences, words and tags; tests/data/README.md says from where."""
    data = Path(__file__).parents[1] / "data" / "entities.conll"
    records = [record.values for record in read_records(data)]
    return [record["words"] for record in records], [record["tags"] for record in records]


def small_classifier(
    class_names=BIO, sequence_length: int = 40, num_classes: int | None = None, **arguments
) -> MegatronBertTokenClassifier:
    preprocessor = MegatronBertTokenClassifierPreprocessor(
        tokenizer("cased"), sequence_length=sequence_length, class_names=class_names
    )
    backbone = small_backbone(vocabulary_size=28996, num_layers=1, **arguments)
    return MegatronBertTokenClassifier(backbone, num_classes or len(class_names), preprocessor)


def random_classifier(**arguments) -> MegatronBertTokenClassifier:
    classifier = small_classifier(**arguments)
    randomize(classifier)
    return classifier


def reference(tmp_path, **config):
    """Return a token classifier of transformers and the same one here."""
    model = random_model("MegatronBertForTokenClassification", num_labels=7, **config)
    model.save_pretrained(tmp_path)
    return model, MegatronBertTokenClassifier.from_preset(str(tmp_path), preprocessor=None)


def reference_logits(model, inputs) -> np.ndarray:
    with torch.no_grad():
        return model(**torch_inputs(inputs)).logits.float().numpy()


# === Parity ===


@pytest.mark.parity
def test_logits_equal_hugging_face(inputs, tmp_path, parity):
    model, classifier = reference(tmp_path)
    expected = reference_logits(model, inputs)
    assert np.abs(expected).max() > 0.5
    parity("token classifier logits", as_numpy(classifier(inputs)), expected, SMALL_TOLERANCE)

    # Negative control: the order of the classes.
    kernel = as_numpy(classifier.classifier.kernel)
    classifier.classifier.kernel.assign(np.roll(kernel, 1, axis=1))
    assert largest_difference(as_numpy(classifier(inputs)), expected) > SMALL_TOLERANCE


@pytest.mark.parity
def test_loss_equals_hugging_faces(inputs, tmp_path, parity):
    """The mean over labelled pieces of the whole batch; -100 there is weight 0 here."""
    model, classifier = reference(tmp_path)
    rng = np.random.default_rng(0)
    labels = rng.integers(7, size=inputs["token_ids"].shape).astype("int32")
    labelled = (rng.random(labels.shape) < 0.5) & (inputs["padding_mask"] > 0)
    with torch.no_grad():
        expected = model(
            **torch_inputs(inputs), labels=torch.from_numpy(np.where(labelled, labels, -100)).long()
        ).loss.item()
    loss, accuracy = classifier.test_on_batch(inputs, labels, labelled.astype("float32"))
    parity("token classifier loss", loss, expected, SMALL_TOLERANCE)
    right = reference_logits(model, inputs).argmax(-1) == labels
    assert float(accuracy) == pytest.approx(right[labelled].mean(), abs=1e-6)

    unweighted = classifier.test_on_batch(inputs, labels)[0]
    assert abs(float(unweighted) - expected) > 1e-3  # negative control


def test_bfloat16_is_as_close_as_hugging_faces(inputs, tmp_path):
    model, _ = reference(tmp_path)
    exact = reference_logits(model, inputs)
    classifier = MegatronBertTokenClassifier.from_preset(
        str(tmp_path), preprocessor=None, dtype="bfloat16"
    )
    ours = as_numpy(keras.ops.cast(classifier(inputs), "float32"))
    theirs = reference_logits(model.to(torch.bfloat16), inputs)
    assert np.sqrt(((ours - exact) ** 2).mean()) <= 3 * np.sqrt(((theirs - exact) ** 2).mean())


# === Training ===


def test_fit_on_words_learns_and_evaluate_and_predict_take_words(sentences):
    words, tags = sentences
    classifier = small_classifier(dropout=0.0, attention_dropout=0.0)
    classifier.compile(optimizer=keras.optimizers.Adam(1e-2))
    history = classifier.fit(words, tags, batch_size=4, epochs=8, verbose=0).history
    assert history["loss"][-1] < 0.6 * history["loss"][0]
    loss, accuracy = classifier.evaluate(words, tags, batch_size=4, verbose=0)
    assert loss < history["loss"][0]
    found = classifier.tag(words)
    pairs = [(a, b) for x, y in zip(found, tags, strict=True) for a, b in zip(x, y, strict=True)]
    assert accuracy > np.mean([tag == "O" for _, tag in pairs])
    assert accuracy == pytest.approx(np.mean([a == b for a, b in pairs]), abs=0.02)  # some cut
    assert classifier.predict(words[:3], batch_size=2, verbose=0).shape == (3, 40, 7)
    assert classifier.predict(["Bing Yu"], verbose=0).shape == (1, 40, 7)


def test_validation_takes_words(sentences):
    words, tags = sentences
    classifier = small_classifier()
    classifier.compile(optimizer=keras.optimizers.SGD(0.0))
    for arguments in ({"validation_data": (words, tags)}, {"validation_split": 0.5}):
        history = classifier.fit(words, tags, epochs=2, verbose=0, **arguments).history
        assert history["val_loss"][0] == pytest.approx(history["val_loss"][1], rel=1e-5)


# === Tags ===


def test_tags_are_those_of_each_words_first_piece(sentences):
    words, _ = sentences
    words = [[*words[0][:2], "\u200b", *words[0][2:]], *words[1:4], ["Unternehmensberatung", "."]]
    classifier = random_classifier()
    found = classifier.tag(words, batch_size=2)
    every_best = as_numpy(classifier(classifier.preprocessor(words))).argmax(-1)
    for sample, tags, best in zip(words, found, every_best, strict=True):
        assert len(sample) == len(tags)
        column = 1
        for word, tag in zip(sample, tags, strict=True):
            pieces = len(tokenizer("cased").tokenize(word))
            assert tag == (BIO[best[column]] if pieces else "O")
            column += pieces
    assert len({tag for tags in found for tag in tags}) > 2


def test_integers_without_class_names():
    classifier = small_classifier(class_names=None, num_classes=3)
    (tags,) = classifier.tag([["Bing", "\u200b", "Yu"]])
    assert tags[1] is None
    assert {type(tags[0]), type(tags[2])} == {int}
    spans = classifier.tag("Bing Yu")
    assert [span["label"] for span in spans] == [tags[0], tags[2]]


def test_spans_are_in_the_original_string():
    classifier = random_classifier(class_names=["noun", "verb", "other"])
    text = "  The Café\u0301s\u200b don't\u00a0open…  "
    spans = classifier.tag(text)
    assert [span["text"] for span in spans][:2] == ["The", "Café\u0301s"]
    assert [span["text"] for span in spans][2:] == ["don", "'", "t", "open", "…"]
    assert all(text[span["start"] : span["end"]] == span["text"] for span in spans)
    logits = as_numpy(classifier(classifier.preprocessor([text])))[0]
    odds = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert spans[0]["score"] == pytest.approx(odds[1].max(), rel=1e-4)
    again, nothing, _ = classifier.tag([text, "", "Café"])
    assert [span["start"] for span in again] == [span["start"] for span in spans]
    assert again[0]["score"] == pytest.approx(spans[0]["score"], rel=1e-5)
    assert nothing == []


def test_bio_tags_become_spans():
    classifier = random_classifier()
    text = "Bing Yu (“Borrower”), a citizen of China with Chinese identification No. 12/F Beijing"
    words = [span["text"] for span in random_classifier(class_names=["a", "b"]).tag(text)]
    tags = classifier.tag([words])[0]
    spans = classifier.tag(text)
    expected = get_entities(tags)
    assert expected
    assert [span["label"] for span in spans] == [label for label, _, _ in expected]
    for span, (_, first, last) in zip(spans, expected, strict=True):
        assert span["text"].startswith(words[first])
        assert span["text"].endswith(words[last])
        assert 0 < span["score"] <= 1


@pytest.mark.parametrize("names", [BIO, IOBES], ids=["BIO", "IOBES"])
def test_tags_are_joined_as_seqeval_joins_them(names):
    rng = np.random.default_rng(0)
    for length in rng.integers(0, 12, size=400):
        tags = rng.choice(names, size=length).tolist()
        expected = [(label, first, last + 1) for label, first, last in get_entities(tags)]
        assert join_tags(tags) == expected, tags
    assert marks_spans(names)
    assert not marks_spans(["O"])
    assert not marks_spans(["O", "PER"])
    assert not marks_spans([0, 1])


def test_long_texts_are_tagged_in_windows():
    classifier = random_classifier(sequence_length=12)
    words = ["Bing", "Yu", "identification", "of", "Unternehmensberatung", "China"] * 6
    (tags,) = classifier.tag([words])
    assert len(tags) == len(words)
    # Each word's tag comes from a window in which it has pieces on both sides.
    ids = [piece for word in words for piece in tokenizer("cased").tokenize(word).tolist()]
    starts = np.cumsum([0, *(len(tokenizer("cased").tokenize(word)) for word in words)])[:-1]
    windows = windows_of(len(ids), 10)
    packed = classifier.preprocessor.tokenizer.pack(
        [ids[first : first + 10] for first, _, _ in windows], sequence_length=12
    )
    best = as_numpy(classifier(packed)).argmax(-1)
    for start, tag in zip(starts, tags, strict=True):
        (row,) = [i for i, (_, first, last) in enumerate(windows) if first <= start < last]
        assert tag == BIO[best[row, 1 + start - windows[row][0]]]
    text = " ".join(words)
    assert classifier.tag([text])[0][-1]["end"] <= len(text)
    found = random_classifier(sequence_length=12, class_names=["a", "b"]).tag(text)
    assert [span["text"] for span in found] == words


@pytest.mark.backend_independent
@pytest.mark.parametrize("room", [1, 2, 3, 10])
def test_windows_give_each_piece_to_one_and_leave_context(room):
    for length in range(60):
        windows = windows_of(length, room)
        answered = [i for _, first, last in windows for i in range(first, last)]
        assert answered == list(range(length))
        assert len(windows) == 1 or length > room
        for start, first, last in windows:
            assert start <= first
            assert last <= min(start + room, length)
            assert start == 0 or first - start >= (room // 2) // 2


# === Errors ===


@pytest.mark.parametrize(("words", "tags", "message"), [
    ([["a", "b"]], [["O"]], "sample 0 has 2 words but 1 tags"),
    ([["a"], ["b"]], [["O"]], "there are 2 samples but 1 labels"),
    ([["a"], ["b"]], [["O"], ["B-DOG"]], "sample 1 has the tag 'B-DOG', which is none of"),
    ([["a"], []], [["O"], []], "sample 1 has no words"),
    ([["a"], [7]], [["O"], ["O"]], "sample 1 has a word that is not a str: 7"),
    (["a"], [["O"]], "tags belong to words"),
    ([], [], "there are no"),
])  # fmt: skip
def test_fit_refuses_what_it_cannot_learn_from(words, tags, message):
    classifier = small_classifier()
    with pytest.raises(ValueError, match=message):
        classifier.fit(words, tags, verbose=0)
    with pytest.raises(ValueError, match=message):
        classifier.fit([["a"]], [["O"]], validation_data=(words, tags), verbose=0)
    with pytest.raises(ValueError, match=message):
        classifier.evaluate(words, tags, verbose=0)


def test_tags_out_of_range_are_refused():
    classifier = small_classifier(class_names=None, num_classes=3)
    for tag in (3, -1):
        with pytest.raises(ValueError, match=f"sample 1 has the tag {tag}, .* from 0 to 2"):
            classifier.fit([["a"], ["b"]], [[0], [tag]], verbose=0)


@pytest.mark.parametrize(("inputs", "arguments", "message"), [
    (None, {}, "tag takes a text, a list of texts or a list of lists of words, not NoneType"),
    ([["a"], "b"], {}, "sample 1 must be a list of words"),
    ([[]], {}, "sample 0 has no words"),
    (["a"], {"batch_size": 0}, "batch_size must be a positive integer, not 0"),
])  # fmt: skip
def test_tag_refuses_what_it_cannot_use(inputs, arguments, message):
    with pytest.raises(ValueError, match=message):
        small_classifier().tag(inputs, **arguments)


def test_tag_needs_a_preprocessor_and_takes_nothing():
    assert small_classifier().tag([]) == []
    with pytest.raises(ValueError, match="tag needs a preprocessor"):
        MegatronBertTokenClassifier(small_backbone(), 3).tag(["a"])


@pytest.mark.parametrize("num_classes", [0, None, 2.0, 6])
def test_class_counts_that_do_not_fit_are_refused(num_classes):
    preprocessor = small_classifier().preprocessor
    with pytest.raises(ValueError, match="num_classes"):
        MegatronBertTokenClassifier(
            small_backbone(vocabulary_size=28996), num_classes, preprocessor
        )
