"""Inside TensorFlow graphs the ids are those of the `tokenizers` library, for every character."""

import sys
import unicodedata

import numpy as np
import pytest
import tensorflow as tf
from bert_reference import (
    HARD_TEXTS,
    PIECES,
    SPECIAL_TOKENS,
    paragraphs,
    reference_ids,
    tokenizer,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer
from tokenizers.normalizers import BertNormalizer

from keras_megatron import MegatronBertTokenizer

both_casings = pytest.mark.parametrize("casing", ["uncased", "cased"])
once = pytest.mark.backend_independent


def in_graph(function, *arguments):
    """Call a function in a graph that knows nothing of its arguments but types."""
    signature = [tf.TensorSpec([None], tf.string)] * len(arguments)
    graph = tf.function(function, input_signature=signature, autograph=False)  # faster to trace
    return graph(*map(tf.constant, arguments))


@both_casings
def test_hard_texts_give_the_ids_of_tokenizers(casing):
    ids = in_graph(tokenizer(casing).tokenize, HARD_TEXTS).to_list()
    for text, row, expected in zip(HARD_TEXTS, ids, reference_ids(casing, HARD_TEXTS), strict=True):
        assert row == expected, text


@once
@both_casings
def test_real_text_gives_the_ids_of_tokenizers(casing):
    texts = paragraphs()
    ids = in_graph(tokenizer(casing).tokenize, texts).to_list()
    assert ids == reference_ids(casing, texts)
    assert ids != reference_ids("cased" if casing == "uncased" else "uncased", texts)


def pieces_of_every_character(lowercase: bool) -> list[str]:
    """A vocabulary with what each assigned character becomes, within a word and at its start."""
    characters = map(chr, range(sys.maxunicode + 1))
    assigned = [c for c in characters if unicodedata.category(c) not in ("Cs", "Co", "Cn")]
    kept = set(BertNormalizer(lowercase=lowercase).normalize_str("\n".join(assigned))) - {" "}
    return [*SPECIAL_TOKENS, *sorted(kept), *sorted(f"##{character}" for character in kept)]


@once
@pytest.mark.parametrize("lowercase", [True, False])
def test_every_unicode_character_gives_the_ids_of_tokenizers(lowercase):
    pieces = pieces_of_every_character(lowercase)
    ours = MegatronBertTokenizer(pieces)
    assert ours.lowercase is lowercase
    theirs = BertWordPieceTokenizer(
        {piece: index for index, piece in enumerate(pieces)}, lowercase=lowercase
    )
    codes = [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]
    texts = [
        " ".join(f"{chr(code)} a{chr(code)}b" for code in codes[start : start + 256])
        for start in range(0, len(codes), 256)
    ]
    ids = in_graph(ours.tokenize, texts).to_list()
    expected = theirs.encode_batch(texts, add_special_tokens=False)
    wrong = [
        f"U+{ord(text[0]):04X}..." for text, row, encoding in zip(texts, ids, expected, strict=True)
        if row != encoding.ids
    ]  # fmt: skip
    assert not wrong


@once
def test_combining_marks_that_stay_are_sorted():
    normalize = BertNormalizer(lowercase=True).normalize_str
    characters = map(chr, range(sys.maxunicode + 1))
    marks = [c for c in characters if unicodedata.combining(c) and normalize(c) == c]
    pieces = [*SPECIAL_TOKENS, "a", *marks, *(f"##{mark}" for mark in marks)]
    theirs = BertWordPieceTokenizer({piece: index for index, piece in enumerate(pieces)})
    texts = [
        f"{letter}{first}{second} {letter}{second}{first}"
        for letter in ("a", "")  # a row may begin with marks
        for first in marks
        for second in marks
    ]
    expected = [encoding.ids for encoding in theirs.encode_batch(texts, add_special_tokens=False)]
    assert in_graph(MegatronBertTokenizer(pieces).tokenize, texts).to_list() == expected
    # The control: two marks in either order are mostly the same, because the reference sorts them.
    halves = [(row[: len(row) // 2], row[len(row) // 2 :]) for row in expected]
    assert sum(first == second for first, second in halves) > 2 * len(marks) + 1000


@once
@both_casings
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_any_text_gives_the_ids_of_tokenizers(casing, texts):
    tokenize = graph_function(casing)
    assert tokenize(tf.constant(texts)).to_list() == reference_ids(casing, texts)


@once
@given(texts=st.lists(st.binary(max_size=20), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_bytes_that_are_not_utf8_are_replaced(texts):
    decoded = [text.decode("utf-8", "replace") for text in texts]
    expected = reference_ids("uncased", decoded)
    assert tokenizer("uncased").tokenize(texts) == expected
    assert graph_function("uncased")(tf.constant(texts)).to_list() == expected


def graph_function(casing, functions={}):  # noqa: B006  one trace serves all examples
    if casing not in functions:
        signature = [tf.TensorSpec([None], tf.string)]
        functions[casing] = tf.function(tokenizer(casing).tokenize, input_signature=signature)
    return functions[casing]


@once
@pytest.mark.parametrize(
    "odd", [["##", "#"], ["\U0010fff0", "##\U0010fff0"], ["a b", " ", "don't"]]
)
def test_odd_vocabularies(odd):
    pieces = [*PIECES, *odd]
    theirs = BertWordPieceTokenizer({piece: index for index, piece in enumerate(pieces)})
    texts = ["## #a a## a b don't \U0010fff0 a\U0010fff0 [MASK]\U0010fff0"]
    expected = [encoding.ids for encoding in theirs.encode_batch(texts, add_special_tokens=False)]
    assert in_graph(MegatronBertTokenizer(pieces).tokenize, texts).to_list() == expected


@once
@pytest.mark.parametrize("sequence_length", [None, 3, 40])
def test_encode_equals_the_eager_path(sequence_length):
    first, second = HARD_TEXTS, HARD_TEXTS[::-1]
    bert = tokenizer("uncased")
    for texts in [(first,), (first, second)]:
        eager = bert.encode(*texts, sequence_length=sequence_length)
        graph = in_graph(lambda *x: bert.encode(*x, sequence_length=sequence_length), *texts)
        assert graph.keys() == eager.keys()
        for name, array in eager.items():
            assert graph[name].dtype == array.dtype
            np.testing.assert_array_equal(graph[name], array)


@once
@pytest.mark.parametrize("sequence_length", [3, 4, 9, 10])
def test_pairs_are_truncated_as_in_the_eager_path(sequence_length):
    bert = tokenizer("uncased")
    first, second = zip(*[("a " * m, "b " * n) for m in range(9) for n in range(9)], strict=True)
    eager = bert.encode(first, second, sequence_length)
    graph = in_graph(lambda *x: bert.encode(*x, sequence_length=sequence_length), first, second)
    for name, array in eager.items():
        np.testing.assert_array_equal(graph[name], array)


def test_data_pipeline_before_and_after_batching():
    bert = tokenizer("uncased")
    texts = ["The cafés", "of [MASK] and Rome", ""]
    expected = bert.encode(texts, sequence_length=8)
    pipeline = tf.data.Dataset.from_tensor_slices(texts)
    batched = pipeline.batch(3).map(lambda x: bert.encode(x, sequence_length=8))
    single = pipeline.map(lambda x: bert.encode(x, sequence_length=8)).batch(3)
    assert batched.element_spec["token_ids"].shape == (None, 8)
    assert single.element_spec["token_ids"].shape == (None, 8)
    for dataset in (batched, single):
        (row,) = dataset.as_numpy_iterator()
        for name, array in expected.items():
            np.testing.assert_array_equal(row[name], array)
    (ragged,) = pipeline.batch(3).map(bert)  # the layer itself
    assert ragged.to_list() == bert.tokenize(texts)
    ids = [row.tolist() for row in pipeline.map(bert).as_numpy_iterator()]
    assert ids == bert.tokenize(texts)


def test_saved_model_carries_the_tokenizer(tmp_path):
    bert = tokenizer("uncased")

    class Service(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)] * 2)
        def encode(self, first, second):
            return bert.encode(first, second, sequence_length=32)

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
        def detokenize(self, ids):
            return bert.detokenize(ids)

    service = Service()
    tf.saved_model.save(service, str(tmp_path / "service"))
    del service
    loaded = tf.saved_model.load(str(tmp_path / "service"))
    partners = HARD_TEXTS[::-1]
    expected = bert.encode(HARD_TEXTS, partners, sequence_length=32)
    arrays = loaded.encode(tf.constant(HARD_TEXTS), tf.constant(partners))
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
    texts = [text.decode() for text in loaded.detokenize(arrays["token_ids"]).numpy()]
    assert texts == bert.detokenize(expected["token_ids"])


def test_the_tensorflow_path_can_be_asked_for_outside_of_a_graph():
    bert = MegatronBertTokenizer(PIECES, _allow_python_workflow=False)
    assert bert.tokenize(["The cafés"]).to_list() == [[5, 6, 7]]
    assert bert.tokenize("The cafés").numpy().tolist() == [5, 6, 7]
    assert bert.detokenize([5, 6, 7]).numpy().decode() == "the cafes"


def test_dtype_of_the_ids():
    bert = MegatronBertTokenizer(PIECES, dtype="int64")
    assert in_graph(bert.tokenize, ["the"]).dtype == tf.int64
    assert in_graph(bert.encode, ["the"])["padding_mask"].dtype == tf.int64


def test_errors():
    bert = tokenizer("uncased")
    with pytest.raises(
        ValueError, match=r"inputs must be a string tensor of rank 0 or 1, not int32"
    ):
        tf.function(bert.tokenize, autograph=False)(tf.constant([1]))
    with pytest.raises(ValueError, match=r"first must be .* not string of rank 2"):
        tf.function(bert.encode, autograph=False)(tf.constant([["a"]]))
    with pytest.raises(ValueError, match="second must be a batch, as first"):
        tf.function(bert.encode, autograph=False)(tf.constant(["a"]), tf.constant("b"))
    pair = tf.function(lambda x: bert.encode(x, x, 2), autograph=False)
    with pytest.raises(ValueError, match="at least 3, for the special tokens of a pair, not 2"):
        pair(tf.constant(["a"]))
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.function(bert.detokenize)(tf.constant([40_000]))
