"""Answering questions: from the logits of windows to the best spans of the contexts."""

import numbers

import numpy as np

from keras_megatron.tasks.context_windows import Windows
from keras_megatron.tasks.samples import check_positive

NO_ANSWER = (0, 0)  # its characters


def answer_questions(
    task,
    questions: list[str],
    contexts: list[str],
    top_k: int,
    null_threshold: float,
    batch_size: int,
) -> list[list[dict]]:
    """See `MegatronBertQuestionAnswering.answer`; here all are lists, of `top_k` answers each."""
    _check(task, questions, contexts, top_k, null_threshold, batch_size)
    preprocessor = task.preprocessor
    answers = []
    chunk = 8 * batch_size  # examples whose windows are held at a time
    for start in range(0, len(questions), chunk):
        part = slice(start, start + chunk)
        windows = preprocessor.windows(questions[part], contexts[part])
        logits = _logits(task, windows, batch_size)
        for example, context in enumerate(contexts[part]):
            scores, null = span_scores(windows, logits, example, preprocessor.max_answer_length)
            ranked = best_spans(scores, null, windows.offsets[example], top_k, null_threshold)
            answers.append([_answer(context, *span) for span in ranked])
    return answers


def _check(task, questions, contexts, top_k, null_threshold, batch_size) -> None:
    preprocessor = task.preprocessor
    if preprocessor is None:
        raise ValueError("answer needs a preprocessor, but this model was made with none")
    for name, value in (("top_k", top_k), ("batch_size", batch_size)):
        check_positive(name, value)
    if not isinstance(null_threshold, numbers.Real) or np.isnan(null_threshold):
        raise ValueError(f"null_threshold must be a number, not {null_threshold!r}")
    for name, texts in (("questions", questions), ("contexts", contexts)):
        if not isinstance(texts, list | tuple | np.ndarray):
            raise ValueError(
                f"{name} must be a list of str, as the other is, or both a str; not "
                f"{type(texts).__name__}"
            )
    task.check_length()
    preprocessor.check_samples((questions, contexts))


def _logits(task, windows: Windows, batch_size: int) -> np.ndarray:
    """Return logits (windows, sequence, 2); lengths are rounded up, to compile few shapes."""
    length = min(-(-windows.longest // 32) * 32, task.preprocessor.sequence_length)
    inputs = windows.pack(range(len(windows)), task.preprocessor.tokenizer, length)
    return task.logits(inputs, batch_size)


def span_scores(
    windows: Windows, logits: np.ndarray, example: int, max_answer_length: int
) -> tuple[np.ndarray, float]:
    """Score the spans of an example's context, and that there is no answer.

    A span's score is the sum of its two logits, in the window where that is highest. The score of
    no answer is that of [CLS] in the window where that is lowest (SQuAD 2.0, and appendix of arXiv
    1810.04805): each of the windows says that the answer is not in it.

    Args:
        windows: of several examples.
        logits: float (windows, sequence, 2).
        example: which one.
        max_answer_length: most tokens of a span.

    Returns:
        Scores of spans, float (context tokens, span tokens): `[i, n]` is of the span from token i
        to token i + n, -inf where no window shows it. And the score of no answer.
    """
    tokens = len(windows.contexts[example])
    longest = min(max_answer_length, tokens)
    scores = np.full((tokens, longest), -np.inf, "float32")
    rows = np.flatnonzero(windows.example == example)
    for row in rows if tokens else ():
        first, count = windows.first[row], windows.count[row]
        at = windows.context_position[row]
        start, end = logits[row, at : at + count].T
        end = np.concatenate([end, np.full(longest - 1, -np.inf, "float32")])
        ends = np.lib.stride_tricks.sliding_window_view(end, longest)  # (count, longest)
        shown = scores[first : first + count]
        np.maximum(shown, start[:, None] + ends, out=shown)
    return scores, float(logits[rows, 0].sum(axis=-1).min())


def best_spans(
    scores: np.ndarray, null: float, offsets: np.ndarray, top_k: int, null_threshold: float
) -> list[tuple[int, int, float]]:
    """Rank the spans of a context, and that there is no answer.

    Args:
        scores: of spans, as `span_scores` returns them.
        null: score of no answer. It goes before spans that it exceeds by more than the threshold.
        offsets: int (context tokens, 2), the characters of each token.
        top_k: how many to give.
        null_threshold: the higher, the fewer questions have no answer.

    Returns:
        Up to `top_k` of (first character, end, probability), the best one first. Probabilities are
        the softmax over all spans and no answer.
    """
    flat = scores.ravel().astype("float64")
    highest = max(flat.max(initial=-np.inf), null)
    total = np.exp(flat - highest).sum() + np.exp(null - highest)
    best = np.argpartition(-flat, top_k - 1)[:top_k] if top_k < len(flat) else np.arange(len(flat))
    best = best[np.argsort(-flat[best], kind="stable")]
    best = best[np.isfinite(flat[best])]
    ranked = []
    for index in best:
        token, more = divmod(int(index), scores.shape[1])
        span = int(offsets[token, 0]), int(offsets[token + more, 1])
        ranked.append((*span, float(np.exp(flat[index] - highest) / total)))
    place = int((flat[best] >= null - null_threshold).sum())
    ranked.insert(place, (*NO_ANSWER, float(np.exp(null - highest) / total)))
    return ranked[:top_k]


def _answer(context: str, start: int, end: int, score: float) -> dict:
    return {"answer": context[start:end], "start": start, "end": end, "score": score}
