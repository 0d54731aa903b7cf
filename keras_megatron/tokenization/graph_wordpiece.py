"""WordPiece as TensorFlow ops: the path inside `tf.data`, `tf.function` and SavedModels.

TensorFlow's own text ops know other Unicode tables, count bytes where BERT counts characters and
do not see a special token in a text. So the graph looks each character up in a table that holds
the reference's own answers: whatever its Unicode version says, the graph says.
"""

import re

from keras_megatron.tokenization.character_table import (
    DROPPED,
    ITSELF,
    NOTHING,
    PAGE,
    STAND_INS,
    WIDTH,
    canonical_classes,
    character_table,
)
from keras_megatron.tokenization.vocabulary import CONTINUATION_PREFIX, Vocabulary
from keras_megatron.tokenization.wordpiece import MAX_CHARACTERS_PER_WORD

_UTF8_BYTES = 4  # a character, at most


class GraphWordPiece:
    """BERT's tokenizer in TensorFlow and TF Text ops, all of which a SavedModel can hold.

    Args:
        vocabulary: the pieces.
        lowercase: lower-case the text and strip its accents.
        dtype: of the ids.

    Raises:
        ImportError: tensorflow-text is not installed.
    """

    def __init__(self, vocabulary: Vocabulary, lowercase: bool, dtype: str):
        import tensorflow as tf

        self._special_ids = vocabulary.ids
        self._dtype = dtype
        page_of, pages = character_table(lowercase)
        # Should the vocabulary have a stand-in's character as a piece: it matches no text, and a
        # piece with a space matches none either.
        replaced = STAND_INS | {stand_in: f" {stand_in}" for stand_in in STAND_INS.values()}
        classes = canonical_classes() if lowercase else {}
        # Without a piece that has such a mark, a word with one is [UNK] in any order.
        self._sorts_marks = not classes.keys().isdisjoint("".join(vocabulary.pieces))
        # Outside of the graph that is being traced, so that the next graph can use them too.
        with tf.init_scope(), tf.device("cpu"):
            self._page_of = tf.constant(page_of)
            self._pages = tf.constant(pages)
            self._marks = tf.constant([ord(mark) for mark in classes], "int32")
            self._classes = tf.constant(list(classes.values()), "int64")
            self._pieces = tf.constant(vocabulary.pieces)
            self._wordpiece = _import_tf_text().FastWordpieceTokenizer(
                [replaced.get(piece, piece) for piece in vocabulary.pieces],
                suffix_indicator=CONTINUATION_PREFIX,
                max_bytes_per_word=MAX_CHARACTERS_PER_WORD * _UTF8_BYTES,
                token_out_type=tf.int32,
                unknown_token=STAND_INS["[UNK]"],
                no_pretokenization=True,
            )

    def tokenize(self, texts):
        """Return the ids of a text (pieces,) or, ragged, of a batch (batch, pieces)."""
        texts, batched = _as_batch(texts, "inputs")
        ids = self._ids(texts)
        return ids if batched else ids[0]

    def detokenize(self, ids):
        """Return the text of ids (pieces,), or of each row of ids (batch, pieces), even ragged."""
        import tensorflow as tf

        pieces = tf.strings.reduce_join(tf.gather(self._pieces, ids), axis=-1, separator=" ")
        return tf.strings.regex_replace(pieces, f" {CONTINUATION_PREFIX}", "")

    def encode(self, first, second, sequence_length: int | None) -> dict:
        """Do what `_packing.pack` does with ids, for texts."""
        import tensorflow as tf

        texts, batched = _as_batch(first, "first")
        ids, partner_ids = self._ids(texts), None
        if second is not None:
            partners, both_batched = _as_batch(second, "second")
            if both_batched != batched:
                raise ValueError(f"second must be {'a batch' if batched else 'one text'}, as first")
            partner_ids = self._ids(partners)
        if sequence_length is not None:
            ids, partner_ids = _truncate(ids, partner_ids, sequence_length)
        start = tf.fill([ids.nrows(), 1], tf.cast(self._special_ids["[CLS]"], self._dtype))
        end = tf.fill([ids.nrows(), 1], tf.cast(self._special_ids["[SEP]"], self._dtype))
        segments = [tf.concat([start, ids, end], axis=1)]
        if partner_ids is not None:
            segments.append(tf.concat([partner_ids, end], axis=1))

        def dense(parts, padding=0):
            rows = tf.concat(parts, axis=1)
            array = rows.to_tensor(default_value=padding, shape=[None, sequence_length])
            return array if batched else array[0]

        return {
            "token_ids": dense(segments, self._special_ids["[PAD]"]),
            "segment_ids": dense([part * 0 + index for index, part in enumerate(segments)]),
            "padding_mask": dense([part * 0 + 1 for part in segments]),
        }

    def _ids(self, texts):
        import tensorflow as tf

        words = tf.strings.split(self._normalize(texts))
        # The reference counts characters. The op counts bytes: its own limit only has to be wider.
        lengths = tf.strings.length(words.values, unit="UTF8_CHAR")
        known = tf.where(lengths > MAX_CHARACTERS_PER_WORD, STAND_INS["[UNK]"], words.values)
        ids = self._wordpiece.tokenize(words.with_values(known)).merge_dims(1, 2)
        return tf.cast(ids, self._dtype)

    def _normalize(self, texts):
        """Clean, fold and split: what remains are words with spaces between them."""
        import tensorflow as tf

        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        texts = tf.strings.regex_replace(texts, f"[{''.join(STAND_INS.values())}]", DROPPED)
        for token, stand_in in STAND_INS.items():
            texts = tf.strings.regex_replace(texts, re.escape(token), stand_in)
        codes = tf.strings.unicode_decode(texts, "UTF-8")
        page = tf.gather(self._page_of, codes.values // PAGE)
        found = tf.gather(self._pages, page * PAGE + codes.values % PAGE)
        found = tf.where(found == ITSELF, codes.values[:, tf.newaxis], found)
        codes = tf.RaggedTensor.from_row_splits(
            tf.reshape(found, [-1]), codes.row_splits * WIDTH, validate=False
        )
        codes = tf.ragged.boolean_mask(codes, codes != NOTHING)
        if self._sorts_marks:
            codes = self._sort_marks(codes)
        return tf.strings.unicode_encode(codes, "UTF-8")

    def _sort_marks(self, codes):
        """Put the combining marks of each letter in canonical order."""
        import tensorflow as tf

        is_mark = codes.values[:, tf.newaxis] == self._marks
        classes = tf.reduce_sum(tf.where(is_mark, self._classes, 0), axis=1)
        # A letter, of class 0, and its marks: one place in the order. So is the start of a row.
        place = tf.cumsum(tf.cast(classes == 0, "int64")) + codes.value_rowids()
        order = tf.argsort(place * 256 + classes, stable=True)
        return codes.with_values(tf.gather(codes.values, order))


def _as_batch(texts, name: str):
    """Return texts as a string tensor (batch,), and whether they were a batch."""
    import tensorflow as tf

    texts = tf.convert_to_tensor(texts)
    if texts.dtype != tf.string or texts.shape.rank not in (0, 1):
        raise ValueError(
            f"{name} must be a string tensor of rank 0 or 1, "
            f"not {texts.dtype.name} of rank {texts.shape.rank}"
        )
    batched = texts.shape.rank == 1
    return (texts if batched else texts[tf.newaxis]), batched


def _truncate(ids, partner_ids, sequence_length: int):
    """Cut ragged ids as `_packing` does."""
    import tensorflow as tf

    if partner_ids is None:
        return ids[:, : sequence_length - 2], None
    budget = sequence_length - 3
    first, second = ids.row_lengths(), partner_ids.row_lengths()
    share = (budget + tf.cast(first > second, "int64")) // 2
    kept_first = tf.minimum(first, tf.maximum(share, budget - second))
    kept_second = tf.minimum(second, budget - kept_first)
    return _first_columns(ids, kept_first), _first_columns(partner_ids, kept_second)


def _first_columns(rows, lengths):
    import tensorflow as tf

    return tf.gather(rows, tf.ragged.range(lengths), batch_dims=1)


def _import_tf_text():
    try:
        import tensorflow_text
    except ImportError as error:
        raise ImportError(
            "tokenizing inside a TensorFlow graph needs tensorflow-text: install it, or call the "
            "tokenizer outside of tf.data and tf.function"
        ) from error
    return tensorflow_text
