"""BERT's normalizer and word splitter as TensorFlow ops, which know where each character was.

TensorFlow's own text ops know other Unicode tables, count bytes where BERT counts characters and
do not see a special token in a text. So the graph looks each character up in a table that holds
the reference's own answers: whatever its Unicode version says, the graph says.
"""

import re
from typing import NamedTuple

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


class Words(NamedTuple):
    """The words of texts, and where their characters come from.

    Attributes:
        words: ragged string tensor (batch, words).
        starts: int64 (characters of all words,), the place in its text of what a character comes
            from.
        ends: int64 (characters of all words,), where that ends: after 1 character, or after a whole
            special token.
    """

    words: object
    starts: object
    ends: object


class GraphNormalization:
    """Cleans, folds and splits texts.

    Args:
        lowercase: lower-case the text and strip its accents.
        characters: those of all pieces. Marks that are in none need not be sorted: a word with one
            is [UNK] in any order.
    """

    def __init__(self, lowercase: bool, characters: str):
        import tensorflow as tf

        page_of, pages = character_table(lowercase)
        classes = canonical_classes() if lowercase else {}
        self._sorts_marks = not classes.keys().isdisjoint(characters)
        # Outside of the graph that is being traced, so that the next graph can use them too.
        with tf.init_scope(), tf.device("cpu"):
            self._page_of = tf.constant(page_of)
            self._pages = tf.constant(pages)
            self._marks = tf.constant([ord(mark) for mark in classes], "int32")
            self._classes = tf.constant(list(classes.values()), "int64")
            self._stand_ins = tf.constant([ord(character) for character in STAND_INS.values()])
            self._token_lengths = tf.constant([len(token) for token in STAND_INS], "int64")

    def __call__(self, texts) -> Words:
        """Split texts, a string tensor (batch,)."""
        import tensorflow as tf

        codes, places = self._look_up(self._decode(texts))
        if self._sorts_marks:
            order = self._order_of_marks(codes)
            codes = codes.with_values(tf.gather(codes.values, order))
            places = tf.gather(places, order)
        words = tf.strings.split(tf.strings.unicode_encode(codes, "UTF-8"))
        of_words = codes.values != ord(" ")
        starts = tf.boolean_mask(places, of_words)
        is_token = tf.boolean_mask(codes.values, of_words)[:, tf.newaxis] == self._stand_ins
        longer = tf.where(is_token, self._token_lengths - 1, 0)
        return Words(words, starts, starts + 1 + tf.reduce_sum(longer, axis=-1))

    def _decode(self, texts):
        """Return the code points of texts, ragged, with stand-ins for special tokens.

        Each character keeps its place: behind its stand-in the rest of a token is dropped later.
        """
        import tensorflow as tf

        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        texts = tf.strings.regex_replace(texts, f"[{''.join(STAND_INS.values())}]", DROPPED)
        for token, stand_in in STAND_INS.items():
            filled = stand_in + DROPPED * (len(token) - 1)
            texts = tf.strings.regex_replace(texts, re.escape(token), filled)
        return tf.strings.unicode_decode(texts, "UTF-8")

    def _look_up(self, codes):
        """Return what characters become, ragged, and the place in its text of each, flat."""
        import tensorflow as tf

        page = tf.gather(self._page_of, codes.values // PAGE)
        found = tf.gather(self._pages, page * PAGE + codes.values % PAGE)
        found = tf.where(found == ITSELF, codes.values[:, tf.newaxis], found)
        places = tf.range(tf.size(found, tf.int64)) // WIDTH
        places -= tf.repeat(codes.row_starts(), codes.row_lengths() * WIDTH)
        found = tf.RaggedTensor.from_row_splits(
            tf.reshape(found, [-1]), codes.row_splits * WIDTH, validate=False
        )
        is_there = found != NOTHING
        return tf.ragged.boolean_mask(found, is_there), tf.boolean_mask(places, is_there.values)

    def _order_of_marks(self, codes):
        """Return the order in which the combining marks of each letter are as they should be."""
        import tensorflow as tf

        is_mark = codes.values[:, tf.newaxis] == self._marks
        classes = tf.reduce_sum(tf.where(is_mark, self._classes, 0), axis=1)
        # A letter, of class 0, and its marks: one place in the order. So is the start of a row.
        place = tf.cumsum(tf.cast(classes == 0, "int64")) + codes.value_rowids()
        return tf.argsort(place * 256 + classes, stable=True)
