"""Answers to questions: the best span of each context."""

import tensorflow as tf

from keras_megatron.serving.answers.endpoint import TEXTS, Endpoint, logits_of_windows
from keras_megatron.tasks.context_windows import SPECIAL_TOKENS

# Melville, Moby-Dick (1851), public domain.
_EXAMPLE = {
    "question": ["What is his name?"],
    "context": ["Call me Ishmael. Some years ago I thought I would sail about a little."],
}
_NOWHERE = tf.float32.min


def question_answering(model, options) -> dict[str, Endpoint]:
    """Find answers in contexts of any length; see `MegatronBertQuestionAnswering.answer`.

    Raises:
        ValueError: the preprocessor makes more tokens than the model has positions.
    """
    model.check_length()  # `answer` does so, each time
    tokenizer = model.preprocessor.tokenizer

    def answer(question, context):
        context = tf.strings.unicode_transcode(context, "UTF-8", "UTF-8")
        ids, offsets = tokenizer.tokenize_with_offsets(context)
        windows = _Windows(model.preprocessor, tokenizer.tokenize(question), ids)
        logits = logits_of_windows(model, windows.inputs(tokenizer))
        longest = model.preprocessor.max_answer_length
        scores, null = _span_scores(windows, logits, tf.cast(longest, tf.int32))
        token, more, score = _best(scores, null, model.null_threshold)
        is_answer = token >= 0
        at = tf.cast(tf.maximum(token, 0), tf.int64) + tf.where(is_answer, ids.row_starts(), 0)
        ends = tf.concat([offsets.values, tf.zeros([1, 2], tf.int64)], axis=0)  # if all are empty
        start = tf.where(is_answer, tf.gather(ends[:, 0], at), 0)
        end = tf.where(is_answer, tf.gather(ends[:, 1], at + tf.cast(more, tf.int64)), 0)
        text = tf.strings.substr(
            context, tf.cast(start, tf.int32), tf.cast(end - start, tf.int32), unit="UTF8_CHAR"
        )
        return {"answer": text, "start": start, "end": end, "score": score}

    return {"serving_default": Endpoint({"question": TEXTS, "context": TEXTS}, answer, _EXAMPLE)}


class _Windows:
    """Windows of contexts, as `tasks.context_windows.make_windows` lays them.

    Attributes:
        example: int32 (windows,), the example that a window belongs to.
        first: int32 (windows,), the first of its context's tokens that a window shows.
        count: int32 (windows,), how many it shows.
        position: int32 (windows,), where in its row the first one is.
        lengths: int32 (examples,), tokens of the contexts.
    """

    def __init__(self, preprocessor, questions: tf.RaggedTensor, contexts: tf.RaggedTensor):
        length = preprocessor.sequence_length
        overlap, longest = preprocessor.window_lengths()
        asked = tf.cast(questions.row_lengths(), tf.int32)
        self.lengths = tf.cast(contexts.row_lengths(), tf.int32)
        fits = SPECIAL_TOKENS + asked + self.lengths <= length
        if preprocessor.max_question_length is not None:
            fits = tf.zeros_like(fits)
        asked = tf.where(fits, asked, tf.minimum(asked, longest))
        room = length - SPECIAL_TOKENS - asked
        stride = tf.maximum(room - overlap, 1)
        counts = tf.where(self.lengths <= room, 1, -(-(self.lengths - overlap) // stride))
        windows = tf.ragged.range(counts)
        self.example = tf.cast(windows.value_rowids(), tf.int32)
        self.first = windows.values * tf.gather(stride, self.example)
        self.count = tf.minimum(
            tf.gather(room, self.example), tf.gather(self.lengths, self.example) - self.first
        )
        self.position = tf.gather(asked, self.example) + 2  # behind [CLS] and the first [SEP]
        self._questions = questions, tf.zeros_like(asked), asked
        self._contexts = contexts

    def inputs(self, tokenizer) -> dict[str, tf.Tensor]:
        """Make the model's inputs, a row a window."""
        questions, start, count = self._questions
        questions = _parts(questions, tf.range(tf.size(start)), start, count)
        questions = tf.gather(questions, self.example)
        return tokenizer.pack(
            questions, _parts(self._contexts, self.example, self.first, self.count)
        )


def _parts(rows: tf.RaggedTensor, which, first, count) -> tf.RaggedTensor:
    """Return of each row in `which` the `count` values from `first` on."""
    start = tf.cast(tf.gather(rows.row_starts(), which), tf.int32) + first
    places = tf.ragged.range(start, start + count)
    return places.with_values(tf.gather(rows.values, places.values))


def _span_scores(windows: _Windows, logits, longest) -> tuple[tf.Tensor, tf.Tensor]:
    """Score spans, and that there is no answer; see `tasks.answer_questions.span_scores`.

    Returns:
        (examples, context tokens, span tokens), `_NOWHERE` where no window shows a span; and
        (examples,).
    """
    most = tf.maximum(tf.reduce_max(windows.count), 0)  # should there be none
    column = tf.range(most)
    shown = column < windows.count[:, tf.newaxis]
    at = tf.where(shown, windows.position[:, tf.newaxis] + column, 0)
    ends = tf.gather(logits, at, batch_dims=1)  # (windows, tokens, 2)
    start = tf.where(shown, ends[..., 0], _NOWHERE)
    end = tf.where(shown, ends[..., 1], _NOWHERE)
    end = tf.pad(end, [[0, 0], [0, longest]], constant_values=_NOWHERE)
    end = tf.gather(end, column[:, tf.newaxis] + tf.range(longest), axis=1)
    spans = tf.where(end > _NOWHERE, start[..., tf.newaxis] + end, _NOWHERE)

    examples, tokens = tf.size(windows.lengths), tf.reduce_max(windows.lengths)
    tokens = tf.maximum(tokens, 1)  # should all contexts be empty
    place = windows.example[:, tf.newaxis] * tokens + windows.first[:, tf.newaxis] + column
    place = tf.where(shown, place, -1)  # which is left out
    scores = tf.math.unsorted_segment_max(spans, place, examples * tokens)
    scores = tf.reshape(scores, [examples, tokens, longest])
    null = tf.math.unsorted_segment_min(
        tf.reduce_sum(logits[:, 0], axis=-1), windows.example, examples
    )
    return scores, null


def _best(scores, null, null_threshold: float) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Choose; see `tasks.answer_questions.best_spans`.

    Returns:
        For each example the answer's first token, -1 for no answer; how many follow it; and the
        probability.
    """
    longest = tf.shape(scores)[2]
    flat = tf.reshape(scores, [tf.shape(scores)[0], -1])
    place = tf.argmax(flat, axis=-1, output_type=tf.int32)
    best = tf.reduce_max(flat, axis=-1)
    highest = tf.maximum(best, null)
    total = tf.reduce_sum(tf.exp(flat - highest[:, tf.newaxis]), axis=-1)
    total += tf.exp(null - highest)
    is_answer = (best > _NOWHERE) & (best >= null - null_threshold)
    probability = tf.exp(tf.where(is_answer, best, null) - highest) / total
    return tf.where(is_answer, place // longest, -1), place % longest, probability
