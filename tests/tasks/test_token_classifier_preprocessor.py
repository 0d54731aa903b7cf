"""Tags on first pieces, against the alignment that the `tokenizers` library reports."""

from pathlib import Path

import bert_reference
import numpy as np
import pytest
from bert_reference import HARD_TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_megatron import MegatronBertTokenClassifierPreprocessor
from keras_megatron.finetuning.records import read_records

pytestmark = pytest.mark.backend_independent

DATA = Path(__file__).parents[1] / "data"
TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
# Words that give no piece, one piece, several, or several "words" of the tokenizer's own.
words = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["", " ", "\u200b", "\u00ad", "\u0301", "e\u0301", "日本"]),
    st.sampled_from(["don't", "[MASK]", "##s", "Café."]),
    st.sampled_from([word for text in HARD_TEXTS for word in text.split()]),
)  # fmt: skip


def preprocessor(sequence_length: int = 64, casing: str = "cased", class_names=None):
    return MegatronBertTokenClassifierPreprocessor(
        bert_reference.tokenizer(casing), sequence_length=sequence_length, class_names=class_names
    )


def reference_labels(samples, tags, sequence_length: int, casing: str = "cased"):
    """Return ids, labels and which pieces have one, by `word_ids` of `tokenizers`."""
    tokenizer = bert_reference.reference(casing)
    tokenizer.enable_truncation(sequence_length)
    tokenizer.enable_padding(length=sequence_length)
    encodings = tokenizer.encode_batch([list(sample) for sample in samples], is_pretokenized=True)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    labels = np.full((len(samples), sequence_length), -100)
    for row, (encoding, of_words) in enumerate(zip(encodings, tags, strict=True)):
        seen = set()
        for column, word in enumerate(encoding.word_ids):
            if word is not None and word not in seen:
                labels[row, column] = of_words[word]
                seen.add(word)
    return np.array([encoding.ids for encoding in encodings]), labels


def assert_equals_reference(samples, tags, sequence_length, casing="cased"):
    x, y, weights = preprocessor(sequence_length, casing)(samples, tags)
    ids, labels = reference_labels(samples, tags, sequence_length, casing)
    np.testing.assert_array_equal(x["token_ids"], ids)
    np.testing.assert_array_equal(weights, labels != -100)
    np.testing.assert_array_equal(y, np.where(labels == -100, 0, labels))


@pytest.mark.parametrize("sequence_length", [64, 16, 3])
@pytest.mark.parametrize("casing", ["cased", "uncased"])
@pytest.mark.parametrize("file", ["entities.conll", "part_of_speech.conll"])
def test_real_sentences_are_aligned_as_tokenizers_aligns_them(file, casing, sequence_length):
    records = [record.values for record in read_records(DATA / file)]
    names = sorted({tag for record in records for tag in record["tags"]})
    samples = [record["words"] for record in records]
    tags = [[names.index(tag) for tag in record["tags"]] for record in records]
    assert_equals_reference(samples, tags, sequence_length, casing)

    # Control: were pieces taken for words, labels would be elsewhere.
    _, labels = reference_labels(samples, tags, 128, casing)
    naive = [row[1 : 1 + len(tag)].tolist() for row, tag in zip(labels, tags, strict=True)]
    assert sum(a != b for a, b in zip(naive, tags, strict=True)) > len(tags) / 2


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(words, min_size=1, max_size=7), min_size=1, max_size=4))
def test_words_of_any_kind_are_aligned_as_tokenizers_aligns_them(samples):
    tags = [list(range(1, len(sample) + 1)) for sample in samples]
    assert_equals_reference(samples, tags, sequence_length=12)


def test_a_word_without_a_piece_shifts_nothing():
    x, y, weights = preprocessor(8)([["A", "\u200b", "b"]], [[1, 2, 3]])
    assert x["padding_mask"].tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
    assert y.tolist() == [[0, 1, 3, 0, 0, 0, 0, 0]]
    assert weights.tolist() == [[0, 1, 1, 0, 0, 0, 0, 0]]
    x, y, weights = preprocessor(8)([["\u200b"]], [[1]])
    assert not weights.any()


def test_the_words_of_a_text_are_those_of_the_tokenizer():
    tokenizer = bert_reference.reference("cased")
    for text in HARD_TEXTS:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        expected = {}  # a special token in the text is a word of its own, which has no id
        for index, (word, (start, end)) in enumerate(
            zip(encoding.word_ids, encoding.offsets, strict=True)
        ):
            key = ("special", index) if encoding.ids[index] in range(100, 104) else word
            expected[key] = (expected.get(key, (start,))[0], end)
        (found,) = preprocessor().words([text])
        assert found.ids == encoding.ids
        assert found.spans == list(expected.values()), text


def test_names_and_integers_and_arrays_are_labels():
    samples = [["Bing", "Yu"], ["China"]]
    with_names = preprocessor(8, class_names=TAGS)
    x, y, weights = with_names(samples, [["B-PER", "I-PER"], ["B-LOC"]])
    for tags in ([[1, 2], [5]], [np.array([1, 2]), (5,)]):
        for a, b in zip(with_names(samples, tags)[1:], (y, weights), strict=True):
            np.testing.assert_array_equal(a, b)
    assert y[0, 1] == 1
    assert y[1, 1] == 5
    arrays = with_names([np.array(sample) for sample in samples])
    np.testing.assert_array_equal(arrays["token_ids"], x["token_ids"])


def test_sample_weights_multiply():
    samples, tags = [["Bing", "Yu"], ["China"]], [[1, 2], [5]]
    plain = preprocessor(8)(samples, tags)[2]
    weighted = preprocessor(8)(samples, tags, sample_weight=np.array([0.5, 2.0]))[2]
    np.testing.assert_allclose(weighted, plain * [[0.5], [2.0]])


def test_one_text_and_several_are_encoded_alike():
    one = preprocessor(8)("Bing Yu")
    several = preprocessor(8)(["Bing Yu", "China"])
    for name in one:
        np.testing.assert_array_equal(one[name], several[name][0])


@pytest.mark.parametrize(("samples", "tags", "message"), [
    ([["a", "b"], ["c"]], [["O", "O"], ["O", "O"]], "sample 1 has 1 words but 2 tags"),
    ([["a"], ["b"]], [["O"]], "there are 2 samples but 1 lists of tags"),
    ([["a"]], ["O"], "the tags of sample 0 must be a list, not 'O'"),
    ([["a"]], [["B-DOG"]], "has the tag 'B-DOG', which is none of the class names O, B-PER"),
    ([["a"]], [[7]], "sample 0 has the tag 7, but tags are from 0 to 6"),
    ([["a"]], [[-1]], "sample 0 has the tag -1, but tags are from 0 to 6"),
    ([["a"]], [[1.0]], "sample 0 has a tag that is neither str nor integer: 1.0"),
    ([["a"]], [[["O"]]], r"sample 0 has a tag that is neither str nor integer: \['O'\]"),
    ([["a"]], [[True]], "sample 0 has a tag that is neither str nor integer: True"),
    (["a b"], [["O", "O"]], "tags belong to words: give lists of words, not texts"),
    ([["a"], []], None, "sample 1 has no words"),
    ([["a"], ["b", 3]], None, "sample 1 has a word that is not a str: 3"),
    ([["a"], [None]], None, "sample 1 has a word that is not a str: None"),
    ([["a"], "b"], None, "sample 1 must be a list of words, as the others, not str: 'b'"),
    (["a", ["b"]], None, "sample 1 must be a text, as the others, not list"),
    ([7], None, "sample 0 must be a list of words"),
    ((["a"], ["b"]), None, "give one list of lists of words .* not 2"),
])  # fmt: skip
def test_what_are_no_words_or_tags_is_refused(samples, tags, message):
    with pytest.raises(ValueError, match=message):
        preprocessor(8, class_names=TAGS)(samples, tags)


def test_names_need_class_names():
    with pytest.raises(
        ValueError, match=r"has the tag 'O': give .* a preprocessor that has class_names"
    ):
        preprocessor(8)([["a"]], [["O"]])


@pytest.mark.parametrize(("arguments", "message"), [
    ({"sequence_length": 2}, "sequence_length must be an integer of at least 3, not 2"),
    ({"sequence_length": None}, "sequence_length must be an integer of at least 3, not None"),
    ({"class_names": ["O", "O"]}, "'O' is there more than once"),
    ({"class_names": ["O", 1]}, "class_names must be strings"),
])  # fmt: skip
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        preprocessor(**arguments)


def test_it_is_refused_in_a_tensorflow_graph():
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(["Bing Yu"]).batch(1)
    with pytest.raises(ValueError, match="does not run in a TensorFlow graph"):
        dataset.map(preprocessor(8))
