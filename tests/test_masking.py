import numpy as np
import pytest

from keras_megatron.masking import MaskingScheme, mask_tokens

pytestmark = pytest.mark.backend_independent

VOCABULARY, MASK = 1000, 4
CONTINUATION = np.arange(VOCABULARY) >= 700  # as if the last 300 pieces began with "##"


def batch(rows: int = 400, sequence: int = 64, seed: int = 0):
    """Return ids in which about a third continue a word, and what is maskable."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, VOCABULARY, size=(rows, sequence)).astype("int32")
    maskable = np.ones(ids.shape, bool)
    maskable[:, [0, -1]] = False  # [CLS] and [SEP]
    maskable[: rows // 2, 40:] = False  # padding
    return ids, maskable


def mask(ids, maskable, seed=0, **arguments):
    length = arguments.pop("length", None)
    return mask_tokens(
        ids,
        maskable,
        MaskingScheme(**arguments),
        np.random.default_rng(seed),
        mask_token_id=MASK,
        vocabulary_size=VOCABULARY,
        continuation=CONTINUATION,
        length=length,
    )


@pytest.mark.parametrize("arguments", [
    {}, {"whole_words": True}, {"max_ngram": 3}, {"whole_words": True, "max_ngram": 3},
])  # fmt: skip
def test_fifteen_percent_are_selected_and_eighty_ten_ten_of_them_replaced(arguments):
    ids, maskable = batch(4000)
    masked = mask(ids, maskable, **arguments)
    selected = masked.mask_weights > 0
    rate = selected.sum() / maskable.sum()
    assert rate == pytest.approx(0.15, abs=0.008 if arguments.get("whole_words") else 0.003)

    now = np.take_along_axis(masked.token_ids, masked.mask_positions, axis=1)[selected]
    before = masked.mask_ids[selected]
    became_mask, kept = now == MASK, now == before
    assert became_mask.mean() == pytest.approx(0.8, abs=0.01)
    assert kept.mean() == pytest.approx(0.1, abs=0.01)
    assert (~became_mask & ~kept).mean() == pytest.approx(0.1, abs=0.01)


def test_labels_positions_and_the_rest_are_right():
    ids, maskable = batch()
    masked = mask(ids, maskable, max_ngram=3, whole_words=True)
    for row in range(len(ids)):
        count = int(masked.mask_weights[row].sum())
        positions = masked.mask_positions[row, :count]
        assert (np.diff(positions) > 0).all()
        assert maskable[row, positions].all()
        np.testing.assert_array_equal(masked.mask_ids[row, :count], ids[row, positions])
        others = np.setdiff1d(np.arange(ids.shape[1]), positions)
        np.testing.assert_array_equal(masked.token_ids[row, others], ids[row, others])
        for padded in (masked.mask_positions, masked.mask_ids, masked.mask_weights):
            assert not padded[row, count:].any()


def words_of(ids, maskable):
    """Number the words of a row, by another way than the code's: one token after the other."""
    words, word = np.full(len(ids), -1), -1
    for position in range(len(ids)):
        if maskable[position]:
            if not (CONTINUATION[ids[position]] and position and maskable[position - 1]):
                word += 1
            words[position] = word
    return words


def test_whole_words_are_never_split():
    ids, maskable = batch()
    whole = mask(ids, maskable, whole_words=True)
    pieces = mask(ids, maskable)

    def split_words(masked):
        split = 0
        for row in range(len(ids)):
            words = words_of(ids[row], maskable[row])
            chosen = np.zeros(ids.shape[1], bool)
            chosen[masked.mask_positions[row][masked.mask_weights[row] > 0]] = True
            split += sum(
                0 < chosen[words == word].sum() < (words == word).sum()
                for word in set(words) - {-1}
            )
        return split

    assert split_words(whole) == 0
    assert split_words(pieces) > 100  # negative control


def test_ngram_lengths_have_the_references_odds():
    """Lone runs of selected tokens are 1, 2 or 3 long with odds 6:3:2 while they are rare."""
    ids = np.full((5, 400_000), 9, "int32")
    odds = {}
    for max_ngram in (1, 3):
        masked = mask(ids, np.ones(ids.shape, bool), selection_rate=0.005, max_ngram=max_ngram)
        lengths = []
        for positions in masked.mask_positions:
            ends = np.flatnonzero(np.diff(positions) > 1) + 1
            lengths += map(len, np.split(positions, ends))
        odds[max_ngram] = np.bincount(lengths, minlength=4)[1:4] / len(lengths)
    # Some are neighbours by chance, about one in a hundred.
    np.testing.assert_allclose(odds[3], np.array([6, 3, 2]) / 11, atol=0.02)
    assert odds[1][0] > 0.98  # negative control: n-grams are what makes runs


def test_masks_depend_on_the_seed_alone():
    ids, maskable = batch()
    first, same, other = (mask(ids, maskable, seed=seed).token_ids for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_random_tokens_come_from_the_whole_vocabulary_and_no_padding_row():
    ids, maskable = batch(2000)
    masked = mask(ids, maskable, mask_rate=0.0, random_rate=1.0)
    replaced = np.take_along_axis(masked.token_ids, masked.mask_positions, axis=1)
    replaced = replaced[masked.mask_weights > 0]
    assert replaced.max() < VOCABULARY
    assert len(np.unique(replaced)) > 0.95 * VOCABULARY


def test_a_row_with_nothing_to_mask_stays():
    ids = np.array([[2, 3, 0, 0]], "int32")
    masked = mask(ids, np.zeros(ids.shape, bool))
    np.testing.assert_array_equal(masked.token_ids, ids)
    assert masked.mask_weights.sum() == 0


def test_one_word_longer_than_the_budget_is_left_alone():
    ids = np.array([[10] + [800] * 9], "int32")  # one word of ten pieces, a budget of two
    masked = mask(ids, np.ones(ids.shape, bool), selection_rate=0.2, whole_words=True)
    assert masked.mask_weights.sum() == 0


def test_whole_words_need_to_know_the_pieces():
    with pytest.raises(ValueError, match="continuation"):
        mask_tokens(
            np.zeros((1, 4), "int32"),
            np.ones((1, 4), bool),
            MaskingScheme(whole_words=True),
            np.random.default_rng(0),
            mask_token_id=MASK,
            vocabulary_size=VOCABULARY,
        )


def test_length_bounds_the_masks():
    ids, maskable = batch()
    masked = mask(ids, maskable, length=3)
    assert masked.mask_positions.shape == (len(ids), 3)
    assert (masked.mask_weights.sum(axis=1) == 3).all()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"selection_rate": 1.5}, "selection_rate must be between 0 and 1, not 1.5"),
    ({"mask_rate": 0.9, "random_rate": 0.2}, "must be at most 1, not 1.1"),
    ({"max_ngram": 0}, "max_ngram must be an integer of at least 1, not 0"),
])  # fmt: skip
def test_impossible_rates_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskingScheme(**arguments)
