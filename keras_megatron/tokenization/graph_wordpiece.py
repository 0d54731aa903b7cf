"""WordPiece as TensorFlow ops: the path inside `tf.data`, `tf.function` and SavedModels."""

from keras_megatron.tokenization.character_table import STAND_INS
from keras_megatron.tokenization.graph_normalization import GraphNormalization
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
        # Should the vocabulary have a stand-in's character as a piece: it matches no text, and a
        # piece with a space matches none either.
        replaced = STAND_INS | {stand_in: f" {stand_in}" for stand_in in STAND_INS.values()}
        self._normalize = GraphNormalization(lowercase, "".join(vocabulary.pieces))
        # Outside of the graph that is being traced, so that the next graph can use them too.
        with tf.init_scope(), tf.device("cpu"):
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

    def tokenize_with_offsets(self, texts):
        """Return ids and the characters that they come from, as `RustWordPiece` does.

        Returns:
            Ids, (pieces,) or ragged (batch, pieces), and int64 (start, end) of each, (pieces, 2) or
            ragged (batch, pieces, 2).
        """
        import tensorflow as tf

        texts, batched = _as_batch(texts, "inputs")
        words = self._normalize(texts)
        ids, counts = self._pieces_of(words.words)
        ids = ids.merge_dims(1, 2)
        # The pieces of all words stand side by side, as the characters do that words are made of.
        ends = tf.cumsum(tf.cast(counts, "int64"))
        starts = tf.gather(words.starts, ends - tf.cast(counts, "int64"))
        offsets = tf.stack([starts, tf.gather(words.ends, ends - 1)], axis=-1)
        if batched:
            return ids, ids.with_values(offsets)
        return ids[0], offsets

    def encode(
        self, first, second, sequence_length: int | None, pad_to_longest: bool = False
    ) -> dict:
        """Do what `MegatronBertTokenizer.encode` does, with string tensors (batch,) or ()."""
        texts, batched = _as_batch(first, "first")
        ids, partner_ids = self._ids(texts), None
        if second is not None:
            partners, both_batched = _as_batch(second, "second")
            if both_batched != batched:
                raise ValueError(f"second must be {'a batch' if batched else 'one text'}, as first")
            partner_ids = self._ids(partners)
        arrays = self.pack(ids, partner_ids, sequence_length, pad_to_longest)
        return arrays if batched else {name: array[0] for name, array in arrays.items()}

    def pack(self, ids, partner_ids, sequence_length: int | None, pad_to_longest: bool) -> dict:
        """Do what `packing.pack` does, with ragged ids (batch, pieces)."""
        import tensorflow as tf

        if sequence_length is not None:
            ids, partner_ids = _truncate(ids, partner_ids, sequence_length)
        start, end, padding = (
            tf.cast(self._special_ids[token], self._dtype) for token in ("[CLS]", "[SEP]", "[PAD]")
        )
        start, end = (tf.fill([ids.nrows(), 1], token) for token in (start, end))
        segments = [tf.concat([start, ids, end], axis=1)]
        if partner_ids is not None:
            segments.append(tf.concat([partner_ids, end], axis=1))
        columns = None if pad_to_longest else sequence_length

        def dense(parts, padding=0):
            rows = tf.concat(parts, axis=1)
            return rows.to_tensor(default_value=padding, shape=[None, columns])

        return {
            "token_ids": dense(segments, padding),
            "segment_ids": dense([part * 0 + index for index, part in enumerate(segments)]),
            "padding_mask": dense([part * 0 + 1 for part in segments]),
        }

    def _ids(self, texts):
        ids, _ = self._pieces_of(self._normalize(texts).words)
        return ids.merge_dims(1, 2)

    def _pieces_of(self, words):
        """Tokenize words.

        Args:
            words: ragged string tensor (batch, words).

        Returns:
            Ids, ragged (batch, words, pieces), and how many characters each is of, flat.
        """
        import tensorflow as tf

        # The reference counts characters. The op counts bytes: its own limit only has to be wider.
        lengths = tf.strings.length(words.values, unit="UTF8_CHAR")
        known = tf.where(lengths > MAX_CHARACTERS_PER_WORD, STAND_INS["[UNK]"], words.values)
        ids, starts, ends = self._wordpiece.tokenize_with_offsets(known)
        ids = tf.cast(ids, self._dtype)
        pieces = tf.strings.substr(
            tf.repeat(known, ids.row_lengths()), starts.values, ends.values - starts.values
        )
        counts = tf.where(
            ids.values == self._special_ids["[UNK]"],
            tf.repeat(lengths, ids.row_lengths()),  # the whole word, which `known` may have lost
            tf.strings.length(pieces, unit="UTF8_CHAR"),
        )
        return words.with_values(ids), counts


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
