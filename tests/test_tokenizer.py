import keras
import numpy as np
import pytest
import tensorflow as tf
from bert_reference import (
    AA,
    CAFE,
    CLS,
    HARD_TEXTS,
    MASK,
    OPEN,
    PAD,
    PIECES,
    SEP,
    SPECIAL_TOKENS,
    THE,
    UNK,
    VOCABULARIES,
    A,
    S,
    tokenizer,
)
from tokenizers import BertWordPieceTokenizer

from keras_megatron import MegatronBertTokenizer


@pytest.fixture
def small() -> MegatronBertTokenizer:
    return MegatronBertTokenizer(PIECES)


# === Texts ===


def test_tokenize(small):
    ids = small.tokenize("The cafés [MASK] [mask]")
    assert ids.dtype == "int32"
    assert ids.tolist() == [THE, CAFE, S, MASK, UNK, UNK, UNK]
    assert small.tokenize(["the", "", "open café"]) == [[THE], [], [OPEN, CAFE]]
    assert small.tokenize([]) == []
    assert small(["the cafés"]) == [[THE, CAFE, S]]  # the layer itself
    assert small("the").tolist() == [THE]


@pytest.mark.parametrize(
    "texts",
    [
        ["the cafés", "open"],
        ("the cafés", "open"),
        np.array(["the cafés", "open"]),
        np.array(["the cafés", "open"], dtype=object),
        np.array(["the cafés".encode(), b"open"]),
        [np.str_("the cafés"), b"open"],
        tf.constant(["the cafés", "open"]),
    ],
    ids=["list", "tuple", "numpy", "objects", "bytes", "mixed", "tensor"],
)
def test_texts_in_any_form(small, texts):
    assert small.tokenize(texts) == [[THE, CAFE, S], [OPEN]]
    assert small.tokenize_with_offsets(texts)[1] == [[(0, 3), (4, 8), (8, 9)], [(0, 4)]]
    token_ids = small.encode(texts)["token_ids"]
    assert token_ids.tolist() == [[CLS, THE, CAFE, S, SEP], [CLS, OPEN, SEP, PAD, PAD]]


@pytest.mark.parametrize("text", ["the", b"the", np.array("the"), tf.constant("the")])
def test_one_text_in_any_form(small, text):
    assert small.tokenize(text).tolist() == [THE]
    ids, offsets = small.tokenize_with_offsets(text)
    assert (ids.tolist(), offsets) == ([THE], [(0, 3)])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (5, "must be a string or a flat list of strings, not int"),
        (None, "must be a string or a flat list of strings, not NoneType"),
        ({"a": 1}, "must be a string or a flat list of strings, not dict"),
        (["the", 5], r"\[1\] must be a string, not int"),
        (["the", None], r"\[1\] must be a string, not NoneType"),
        (["the", ["the"]], r"\[1\] must be a string, not list"),
        ([("the", "open")], r"\[0\] must be a string, not tuple"),
        (np.array([["the"]]), r"\[0\] must be a string, not list"),
        (np.array([1.5]), r"\[0\] must be a string, not float"),
    ],
)
def test_what_is_not_a_text(small, texts, message):
    for name, call in {
        "inputs": small.tokenize,
        "first": small.encode,
        "second": lambda texts: small.encode(["the"], texts),
    }.items():
        if name == "second" and texts is None:
            continue
        with pytest.raises(ValueError, match=name + message.replace("must", ".*must", 1)) as error:
            call(texts)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([THE, CAFE, S, OPEN], "the cafes open"),
        (np.array([[THE, CAFE, S], [CLS, OPEN, SEP]]), ["the cafes", "[CLS] open [SEP]"]),
        ([[THE], [], [S, AA]], ["the", "", "##sa"]),
        ([], ""),
        (tf.constant([[THE, CAFE]]), ["the cafe"]),
        (tf.ragged.constant([[THE, CAFE], [A]]), ["the cafe", "a"]),
    ],
    ids=["list", "numpy", "rows", "none", "tensor", "ragged"],
)
def test_detokenize(small, ids, text):
    assert small.detokenize(ids) == text


def test_detokenize_tensors_of_the_backend(small):
    assert small.detokenize(keras.ops.convert_to_tensor([THE, CAFE, S])) == "the cafes"
    with pytest.raises(ValueError, match="has ids 0 to 10, not 11"):
        small.detokenize([[11]])


# === Model inputs ===


def test_encode(small):
    arrays = small.encode(["the cafés", ""], ["open", "a"], sequence_length=9)
    assert {array.dtype.name for array in arrays.values()} == {"int32"}
    assert arrays["token_ids"].tolist() == [
        [CLS, THE, CAFE, S, SEP, OPEN, SEP, PAD, PAD],
        [CLS, SEP, A, SEP, PAD, PAD, PAD, PAD, PAD],
    ]
    assert arrays["segment_ids"].tolist() == [[0, 0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1] + [0] * 5]
    assert arrays["padding_mask"].tolist() == [[1] * 7 + [0] * 2, [1] * 4 + [0] * 5]


def test_encode_one_text(small):
    arrays = small.encode("the cafés", "open")
    assert arrays["token_ids"].tolist() == [CLS, THE, CAFE, S, SEP, OPEN, SEP]
    assert arrays["segment_ids"].tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert small.encode("")["token_ids"].tolist() == [CLS, SEP]
    assert small.encode([], sequence_length=4)["token_ids"].shape == (0, 4)
    assert small.encode([])["token_ids"].shape == (0, 0)


def test_padding_is_the_vocabularys():
    pieces = ["the", *reversed(SPECIAL_TOKENS)]
    arrays = MegatronBertTokenizer(pieces).encode("the", sequence_length=5)
    assert arrays["token_ids"].tolist() == [3, 0, 2, 5, 5]
    assert arrays["segment_ids"].tolist() == [0] * 5


def test_dtype_of_the_ids():
    small = MegatronBertTokenizer(PIECES, dtype="int64")
    assert small.tokenize("the").dtype == "int64"
    assert small.encode("the")["segment_ids"].dtype == "int64"
    with pytest.raises(ValueError, match="dtype must be an integer dtype for ids, not float32"):
        MegatronBertTokenizer(PIECES, dtype="float32")


@pytest.mark.parametrize("sequence_length", [None, 2, 3, 16, 64])
def test_encode_equals_tokenizers(sequence_length):
    compare_with_tokenizers("uncased", sequence_length, HARD_TEXTS)
    if sequence_length != 2:
        compare_with_tokenizers("cased", sequence_length, HARD_TEXTS, HARD_TEXTS[::-1])


@pytest.mark.parametrize("sequence_length", range(3, 13))
def test_pairs_are_truncated_as_by_tokenizers(sequence_length):
    first, second = zip(*[("a " * m, "b " * n) for m in range(10) for n in range(10)], strict=True)
    compare_with_tokenizers("uncased", sequence_length, first, second)


def compare_with_tokenizers(casing, sequence_length, first, second=None):
    theirs = BertWordPieceTokenizer(str(VOCABULARIES[casing]), lowercase=casing == "uncased")
    if sequence_length:
        theirs.enable_truncation(sequence_length, strategy="longest_first")
    theirs.enable_padding(length=sequence_length)
    inputs = list(first) if second is None else list(zip(first, second, strict=True))
    encodings = theirs.encode_batch(inputs)
    arrays = tokenizer(casing).encode(first, second, sequence_length=sequence_length)
    for ours, attribute in {
        "token_ids": "ids",
        "segment_ids": "type_ids",
        "padding_mask": "attention_mask",
    }.items():
        expected = [getattr(encoding, attribute) for encoding in encodings]
        np.testing.assert_array_equal(arrays[ours], expected)


@pytest.mark.parametrize(
    ("second", "length", "message"),
    [
        (None, 1, "sequence_length must be None or an integer of at least 2, .* not 1"),
        (None, 8.0, "sequence_length must be .* not 8.0"),
        (
            ["b"],
            2,
            "sequence_length must be .* at least 3, for the special tokens of a pair, not 2",
        ),
        (["b", "c"], 8, "second must be as many texts as first: 2 against 1"),
        ("b", 8, "second must be a batch, as first"),
    ],
)
def test_what_cannot_be_encoded(small, second, length, message):
    with pytest.raises(ValueError, match=message) as error:
        small.encode(["a"], second, sequence_length=length)
    assert "\n" not in str(error.value)
