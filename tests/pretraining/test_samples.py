import pathlib

import numpy as np
import pytest

from keras_megatron import MegatronBertTokenizer
from keras_megatron.masking import MaskingScheme
from keras_megatron.pretraining.samples import masked_batches, pack_documents

pytestmark = pytest.mark.backend_independent

ROOT = pathlib.Path(__file__).parents[2]
PARAGRAPHS = (ROOT / "tests" / "data" / "paragraphs.txt").read_text("utf-8").splitlines()
DOCUMENTS = [PARAGRAPHS[start : start + 5] for start in range(0, 200, 5)]


@pytest.fixture(scope="module")
def tokenizer():
    vocabularies = ROOT / "keras_megatron" / "presets" / "vocabularies"
    return MegatronBertTokenizer(vocabularies / "bert_uncased.txt")


def contents(samples, tokenizer) -> list[list[int]]:
    special = set(tokenizer.special_token_ids)
    return [[i for i in row.tolist() if i not in special] for row in samples]


def test_samples_hold_the_documents_in_order_and_cross_none(tokenizer):
    samples = pack_documents(DOCUMENTS, tokenizer, 64, seed=3)
    rows = contents(samples, tokenizer)
    texts = [tokenizer.tokenize(" ".join(document)).tolist() for document in DOCUMENTS]
    unknown = tokenizer.unk_token_id
    for text in texts:  # each sample belongs to one document, and together they are all of it
        text = [i for i in text if i != unknown]
        found = []
        while len(found) < len(text):
            found += rows.pop(0)
        assert found == text
    assert not rows
    assert (samples[:, 0] == tokenizer.cls_token_id).all()
    assert ((samples == tokenizer.sep_token_id).sum(axis=1) == 1).all()


def test_most_samples_are_nearly_full_and_some_are_short(tokenizer):
    rows = contents(pack_documents(DOCUMENTS, tokenizer, 64, short_sample_rate=0.1), tokenizer)
    lengths = np.array([len(row) for row in rows])
    assert np.median(lengths) > 45
    assert (lengths < 16).any()
    assert lengths.max() <= 62


def test_batches_repeat_with_the_seed_and_differ_between_epochs(tokenizer):
    samples = pack_documents(DOCUMENTS, tokenizer, 64)

    def two_epochs(seed):
        scheme = MaskingScheme(whole_words=True, max_ngram=3)
        batches = masked_batches(samples, tokenizer, scheme, batch_size=16, seed=seed)
        each = len(batches)
        return each, [x["token_ids"] for x, _, _ in batches.repeat(2)]

    each, first = two_epochs(1)
    assert len(first) == 2 * each == 2 * (len(samples) // 16)
    np.testing.assert_array_equal(first, two_epochs(1)[1])
    assert (np.array(first) != np.array(two_epochs(2)[1])).any()
    assert (np.array(first[:each]) != np.array(first[each:])).any()


def test_what_cannot_be_packed_is_refused(tokenizer):
    with pytest.raises(ValueError, match="sequence_length must be at least 3, not 2"):
        pack_documents(DOCUMENTS, tokenizer, 2)
    with pytest.raises(ValueError, match="3 samples are too few for batches of 16"):
        masked_batches(np.zeros((3, 8), "int32"), tokenizer, MaskingScheme(), 16, seed=1)


def test_evaluation_covers_every_sample_in_order(tokenizer):
    samples = pack_documents(DOCUMENTS, tokenizer, 64)
    batches = masked_batches(samples, tokenizer, MaskingScheme(), 16, seed=1, shuffle=False)
    restored = []
    for x, y, weight in batches:
        ids = x["token_ids"].copy()
        for row, column in np.argwhere(weight > 0):
            ids[row, x["mask_positions"][row, column]] = y[row, column]
        restored.append(ids)
        np.testing.assert_array_equal(x["padding_mask"], ids != tokenizer.pad_token_id)
    np.testing.assert_array_equal(np.concatenate(restored), samples)
