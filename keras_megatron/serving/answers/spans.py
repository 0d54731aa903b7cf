"""Answers that are spans of texts with labels, such as named entities."""

import tensorflow as tf

from keras_megatron.serving.answers.endpoint import (
    TEXTS,
    Endpoint,
    dense,
    logits_of_windows,
    most_tokens,
    names_of,
)
from keras_megatron.tasks.tagging import marks_spans

_EXAMPLE = {"text": ["Captain Ahab sailed from Nantucket."]}
_PREFIXES = ["O", "B", "I", "E", "S"]
_O, _B, _I, _E, _S = range(len(_PREFIXES))


def tagging(model, options) -> dict[str, Endpoint]:
    """Find the spans of texts; see `MegatronBertTokenClassifier.tag`."""
    tokenizer = model.preprocessor.tokenizer

    def answer(text):
        text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8")
        ids, offsets = tokenizer.tokenize_with_offsets(text)
        begins_word = ~tf.gather(tf.constant(tokenizer.continuation_mask), ids.values)
        ends_word = tf.concat([begins_word[1:], [True]], axis=0)[: tf.size(begins_word)]
        of_words = tf.boolean_mask(probabilities_of(model, ids), begins_word)
        row = tf.boolean_mask(ids.value_rowids(), begins_word)
        start = tf.boolean_mask(offsets.values[:, 0], begins_word)
        end = tf.boolean_mask(offsets.values[:, 1], ends_word)
        return _spans(names_of(model), text, row, start, end, of_words)

    return {"serving_default": Endpoint({"text": TEXTS}, answer, _EXAMPLE)}


def probabilities_of(model, ids: tf.RaggedTensor) -> tf.Tensor:
    """Return the probabilities of the classes for each piece, (all pieces, classes).

    Long texts are read in windows, each over half of the one before it: those of
    `tasks.tagging.windows_of`, in whose overlap each window answers for its half.
    """
    room = most_tokens(model) - 2  # [CLS] and [SEP]
    overlap = room // 2
    stride = room - overlap
    lengths = tf.cast(ids.row_lengths(), tf.int32)
    counts = -(-tf.maximum(lengths - overlap, 1) // stride)  # windows of each text
    windows = tf.ragged.range(counts)
    text = tf.cast(windows.value_rowids(), tf.int32)
    start = windows.values * stride
    shown = tf.minimum(room, tf.gather(lengths, text) - start)
    first = tf.cast(tf.gather(ids.row_starts(), text), tf.int32) + start
    rows = tf.ragged.range(first, first + shown)
    rows = rows.with_values(tf.gather(ids.values, rows.values))
    inputs = model.preprocessor.tokenizer.pack(rows)
    probabilities = tf.nn.softmax(logits_of_windows(model, inputs))

    piece = tf.ragged.range(lengths).values
    of_text = tf.cast(ids.value_rowids(), tf.int32)
    last = tf.gather(counts, of_text) - 1
    window = tf.clip_by_value((piece - overlap // 2) // stride, 0, last)
    row = tf.gather(tf.cast(windows.row_starts(), tf.int32), of_text) + window
    return tf.gather_nd(probabilities, tf.stack([row, 1 + piece - window * stride], axis=-1))


def _spans(names: list[str], text, row, start, end, probabilities) -> dict[str, tf.Tensor]:
    """Join words to spans as `tasks.tagging.join_tags` does.

    Args:
        names: of the classes.
        text: string (batch,).
        row: int64 (words,), the text of each word.
        start: int64 (words,), its first character.
        end: int64 (words,), where it ends.
        probabilities: (words, classes).
    """
    best = tf.argmax(probabilities, axis=-1)
    labels, begins, inside = _join(names, best, row)
    span = tf.boolean_mask(tf.cumsum(tf.cast(begins, tf.int32)) - 1, inside)
    count = tf.reduce_sum(tf.cast(begins, tf.int32))
    row, start = tf.boolean_mask(row, begins), tf.boolean_mask(start, begins)
    score = tf.boolean_mask(tf.reduce_max(probabilities, axis=-1), inside)
    score = tf.math.unsorted_segment_mean(score, span, count)
    end = tf.math.unsorted_segment_max(tf.boolean_mask(end, inside), span, count)
    parts = tf.strings.substr(
        tf.gather(text, row),
        tf.cast(start, tf.int32),
        tf.cast(end - start, tf.int32),
        unit="UTF8_CHAR",
    )
    fields = {
        "labels": (tf.boolean_mask(labels, begins), ""),
        "texts": (parts, ""),
        "starts": (start, 0),
        "ends": (end, 0),
        "scores": (score, 0.0),
    }
    of_rows = {
        name: tf.RaggedTensor.from_value_rowids(values, row, tf.size(text, tf.int64))
        for name, (values, _) in fields.items()
    }
    answer = {name: dense(of_rows[name], padding) for name, (_, padding) in fields.items()}
    return {**answer, "spans": of_rows["labels"].row_lengths()}


def _join(names: list[str], best, row) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return each word's label, whether it begins a span, and whether it is inside of one."""
    if not marks_spans(names):
        everywhere = tf.ones_like(best, tf.bool)
        return tf.gather(tf.constant(names), best), everywhere, everywhere
    prefixes, _, labels = zip(*(name.partition("-") for name in names), strict=True)
    prefix = tf.gather(tf.constant([_PREFIXES.index(p) for p in prefixes]), best)
    number = tf.gather(tf.constant([labels.index(label) for label in labels]), best)

    def before(values):
        return tf.concat([values[:1], values[:-1]], axis=0)

    follows = tf.range(tf.size(row)) > 0
    follows &= (before(row) == row) & (before(number) == number)
    follows &= (before(prefix) == _B) | (before(prefix) == _I)
    inside = prefix != _O
    begins = inside & ~(follows & ((prefix == _I) | (prefix == _E)))
    return tf.gather(tf.constant(labels), best), begins, inside
