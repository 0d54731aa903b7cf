"""Pairs of sentences for pretraining, next to `megatron-core`'s own index of samples."""

import pathlib

import numpy as np
import pytest

from keras_megatron.pretraining.sentence_pairs import SentencePairs, pretraining_batches
from keras_megatron.pretraining.token_files import TokenFiles, write_token_files

pytestmark = pytest.mark.backend_independent
PARAGRAPHS = pathlib.Path(__file__).parents[1] / "data" / "paragraphs.txt"
LENGTH = 64


@pytest.fixture(scope="module")
def files(tokenizer, tmp_path_factory):
    """Documents of five paragraphs, a sentence of what ends with a stop."""
    prefix = tmp_path_factory.mktemp("corpus") / "corpus"
    paragraphs = [p for p in PARAGRAPHS.read_text("utf-8").splitlines() if p.strip()]
    documents = [
        [ids for p in part for ids in tokenizer.tokenize(p.split(". ")) if len(ids)]
        for part in (paragraphs[i : i + 5] for i in range(0, len(paragraphs), 5))
    ]
    write_token_files(prefix, [*documents, [[1996]]], tokenizer)  # the last has no pair
    return TokenFiles.open(prefix, tokenizer)


def samples_of(files, tokenizer, **arguments):
    source = pretraining_batches(files, tokenizer, 1, LENGTH, **arguments)
    return [source[i] for i in range(len(SentencePairs(files, LENGTH)))]


def spans_of_megatron(files, length: int) -> list[tuple]:
    """Return what megatron-core says of samples: first sentence, one after the last, room."""
    from megatron.core.datasets import helpers_cpp

    sizes = np.asarray(files.lengths, "int32")
    documents = np.asarray(files.documents, "int64")
    mapping = helpers_cpp.build_mapping(
        documents, sizes, 1, 2**31 - 2, length - 3, 0.0, 1, False, 2
    )
    return sorted(map(tuple, np.asarray(mapping).tolist()))


def spans(files, length: int) -> list[tuple]:
    source = SentencePairs(files, length, short_sample_rate=0.0)
    return [tuple(span) for span in source._spans.tolist()]


def test_samples_are_those_of_megatron(files):
    expected, found = spans_of_megatron(files, LENGTH), spans(files, LENGTH)
    assert found == expected
    assert found != [(a, b + 1, c) for a, b, c in expected]
    assert len(found) > 50


def test_documents_with_a_long_sentence_are_left_out_as_megatron_does(tokenizer, tmp_path):
    lengths = [(100, 100), (50, 600, 50), (513, 2), (512, 2), (100, 100)]
    documents = [[[1996] * length for length in document] for document in lengths]
    write_token_files(tmp_path / "long", documents, tokenizer)
    files = TokenFiles.open(tmp_path / "long", tokenizer)
    for length in (64, 512):
        assert spans(files, length) == spans_of_megatron(files, length)
        assert [span[0] for span in spans(files, length)] == [0, 7, 9]
    write_token_files(tmp_path / "none", documents[1:3], tokenizer)
    with pytest.raises(ValueError, match="of none with more than 512 tokens"):
        SentencePairs(TokenFiles.open(tmp_path / "none", tokenizer), 512)


def test_a_sample_is_a_pair_of_whole_sentences(files, tokenizer):
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    source = SentencePairs(files, LENGTH, short_sample_rate=0.0)
    texts = [np.concatenate(source[i][0]).tolist() for i in range(len(source))]
    swapped = 0
    for x, y, weight in samples_of(files, tokenizer, short_sample_rate=0.0):
        ids, segments = x["token_ids"][0].copy(), x["segment_ids"][0]
        there = weight["mlm"][0] > 0
        ids[x["mask_positions"][0][there]] = y["mlm"][0][there]  # what was hidden
        length = int(x["padding_mask"].sum())
        assert ids[0] == start
        assert ids[length - 1] == end
        assert (ids[length:] == tokenizer.pad_token_id).all()
        first = ids[1 : int((segments[:length] == 0).sum()) - 1].tolist()
        second = ids[len(first) + 2 : length - 1].tolist()
        assert ids[len(first) + 1] == end
        parts = [second, first] if y["nsp"][0] else [first, second]
        swapped += int(y["nsp"][0])
        if length < LENGTH:  # nothing was cut: it is the text of one sample
            assert parts[0] + parts[1] in texts
            assert parts[1] + parts[0] not in texts
    assert 0.35 < swapped / len(texts) < 0.65


def test_any_worker_makes_the_same(files, tokenizer):
    batches = pretraining_batches(files, tokenizer, 4, LENGTH, seed=3)
    same = pretraining_batches(files, tokenizer, 4, LENGTH, seed=3)
    other = pretraining_batches(files, tokenizer, 4, LENGTH, seed=4)
    for i in (0, 5, 1000):
        np.testing.assert_equal(batches[i], same[i])
        assert (batches[i][0]["token_ids"] != other[i][0]["token_ids"]).any()
    count = len(SentencePairs(files, LENGTH))
    epochs = [
        {tuple(batches[i][1]["mlm"].ravel()) for i in range(first, first + count // 4)}
        for first in (0, count // 4)
    ]
    assert not epochs[0] & epochs[1]  # hidden anew


def test_a_million_tokens_are_hidden_as_megatron_hides_them(files, tokenizer):
    """15 % of them, 80 / 10 / 10 of these, whole words, half of the pairs swapped."""
    batches = pretraining_batches(files, tokenizer, 64, 128)
    continues = tokenizer.continuation_mask
    counts = dict.fromkeys(("tokens", "hidden", "mask", "same", "samples", "swapped"), 0)
    index = 0
    while counts["tokens"] < 10**6:
        x, y, weight = batches[index]
        index += 1
        there = weight["mlm"] > 0
        shown = np.take_along_axis(x["token_ids"], x["mask_positions"], 1)
        original = x["token_ids"].copy()
        rows, places = np.nonzero(there)
        at = rows, x["mask_positions"][rows, places]
        original[at] = y["mlm"][rows, places]
        is_special = np.isin(original, tokenizer.special_token_ids)
        is_hidden = np.zeros(original.shape, bool)
        is_hidden[at] = True
        assert not (is_hidden & is_special).any()
        # A piece that continues a word is hidden if and only if the piece before it is.
        inner = continues[original[:, 1:]] & ~is_special[:, :-1]
        assert (is_hidden[:, 1:] == is_hidden[:, :-1])[inner].all()
        counts["tokens"] += int((~is_special).sum())
        counts["hidden"] += int(there.sum())
        counts["mask"] += int((shown[there] == tokenizer.mask_token_id).sum())
        counts["same"] += int((shown[there] == y["mlm"][there]).sum())
        counts["samples"] += len(y["nsp"])
        counts["swapped"] += int(y["nsp"].sum())
    assert abs(counts["hidden"] / counts["tokens"] - 0.15) < 0.002
    assert abs(counts["mask"] / counts["hidden"] - 0.8) < 0.005
    assert abs(counts["same"] / counts["hidden"] - 0.1) < 0.005
    assert abs(counts["swapped"] / counts["samples"] - 0.5) < 0.03


def test_some_samples_may_be_one_part(files, tokenizer):
    samples = samples_of(files, tokenizer, pair_rate=0.5)
    alone = [x for x, _, weight in samples if not weight["nsp"][0]]
    assert 0.3 < len(alone) / len(samples) < 0.7
    for x in alone:
        assert not x["segment_ids"].any()
        assert (x["token_ids"] == tokenizer.sep_token_id).sum() == 1
    assert all(x["segment_ids"].any() for x, _, weight in samples if weight["nsp"][0])


def test_a_pretrainer_learns_from_them(files, tokenizer):
    from models import small_backbone

    from keras_megatron import MegatronBertPretrainer

    backbone = small_backbone(vocabulary_size=tokenizer.vocabulary_size(), dropout=0.0)
    pretrainer = MegatronBertPretrainer(backbone)
    batches = pretraining_batches(files, tokenizer, 4, 32)[:3]
    before = pretrainer.evaluate(batches, verbose=0, return_dict=True)["loss"]
    pretrainer.fit(batches, epochs=3, verbose=0)
    assert pretrainer.evaluate(batches, verbose=0, return_dict=True)["loss"] < before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 10**6}, "fewer than a batch of 1000000: give more text"),
        ({"batch_size": 1, "sequence_length": 4}, "sequence_length must be at least 5, not 4"),
        ({"batch_size": 1, "short_sample_rate": 2}, "short_sample_rate must be between 0 and 1"),
    ],
)
def test_bad_arguments_are_refused(files, tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        pretraining_batches(files, tokenizer, **arguments)


def test_a_corpus_without_pairs_is_refused(tmp_path, tokenizer):
    write_token_files(tmp_path / "corpus", [[[5, 6]], [[7]]], tokenizer)
    with pytest.raises(ValueError, match="no document of two sentences"):
        pretraining_batches(TokenFiles.open(tmp_path / "corpus"), tokenizer, 1)
