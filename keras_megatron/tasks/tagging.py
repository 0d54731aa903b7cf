"""Tags of words, and spans in texts: what a token classifier answers."""

from collections.abc import Sequence

import numpy as np

from keras_megatron.tasks.answers import softmax
from keras_megatron.tasks.samples import by_position
from keras_megatron.tasks.word_pieces import WordPieces


def tag(classifier, samples: Sequence, batch_size: int) -> list:
    """See `MegatronBertTokenClassifier.tag`; here `samples` is always a list."""
    preprocessor = classifier.preprocessor
    if preprocessor is None:
        raise ValueError("tag needs a preprocessor, but this model was made with none")
    samples = by_position(samples)
    if not isinstance(samples, list | tuple | np.ndarray):
        raise ValueError(
            f"tag takes a text, a list of texts or a list of lists of words, not "
            f"{type(samples).__name__}"
        )
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer, not {batch_size!r}")
    samples = list(samples)
    preprocessor.check_samples((samples,))
    names = preprocessor.class_names or list(range(classifier.num_classes))
    answers = []
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        words = preprocessor.words(batch)
        probabilities = _probabilities(classifier, words, batch_size)
        for sample, pieces, of_pieces in zip(batch, words, probabilities, strict=True):
            if isinstance(sample, str):
                answers.append(_spans(sample, pieces, of_pieces[pieces.starts], names))
            else:
                answers.append(_tags(pieces, of_pieces, names))
    return answers


def _probabilities(classifier, words: list[WordPieces], batch_size: int) -> list[np.ndarray]:
    """Return the probabilities of the classes for each piece, (pieces, classes) a sample."""
    preprocessor = classifier.preprocessor
    limit = min(preprocessor.sequence_length, classifier.backbone.max_sequence_length)
    room = limit - 2  # [CLS] and [SEP]
    windows = [windows_of(len(sample.ids), room) for sample in words]
    rows = [
        sample.ids[start : start + room]
        for sample, of_sample in zip(words, windows, strict=True)
        for start, _, _ in of_sample
    ]
    # Lengths are rounded up, so that a compiled backend sees few shapes.
    length = min(-(-(max(map(len, rows)) + 2) // 32) * 32, limit)
    inputs = preprocessor.tokenizer.pack(rows, sequence_length=length)
    logits = iter(classifier.logits(inputs, batch_size))
    return [
        np.concatenate(
            [
                softmax(next(logits)[1 + first - start : 1 + last - start])
                for start, first, last in of_sample
            ]
        )
        for of_sample in windows
    ]


def windows_of(length: int, room: int) -> list[tuple[int, int, int]]:
    """Lay windows of `room` pieces over `length` pieces, each over half of the one before it.

    Returns:
        For each window its first piece, and the first and the last (exclusive) of the pieces that
        it answers for: the overlap is shared out in its middle, so that each piece has one window.
    """
    overlap = room // 2
    starts = range(0, max(length - overlap, 1), room - overlap)
    bounds = [0, *(start + overlap // 2 for start in starts[1:]), length]
    return list(zip(starts, bounds[:-1], bounds[1:], strict=True))


def _tags(pieces: WordPieces, probabilities: np.ndarray, names: list) -> list:
    best = probabilities.argmax(axis=-1)
    missing = "O" if "O" in names else None
    return [missing if start is None else names[best[start]] for start in pieces.starts]


def _spans(text: str, pieces: WordPieces, probabilities: np.ndarray, names: list) -> list[dict]:
    """Make spans of a text's words, given their probabilities (words, classes)."""
    tags = [names[best] for best in probabilities.argmax(axis=-1)]
    groups = (
        join_tags(tags) if marks_spans(names) else [(tags[i], i, i + 1) for i in range(len(tags))]
    )
    scores = probabilities.max(axis=-1)
    spans = []
    for label, first, last in groups:
        start, end = pieces.spans[first][0], pieces.spans[last - 1][1]
        score = float(scores[first:last].mean())
        spans.append(
            {"label": label, "text": text[start:end], "start": start, "end": end, "score": score}
        )
    return spans


def marks_spans(names: Sequence) -> bool:
    """Say whether class names are tags of the BIO or the IOBES scheme."""
    names = [str(name) for name in names]
    prefixes = ("B-", "I-", "E-", "S-")
    return all(name == "O" or name.startswith(prefixes) for name in names) and names != ["O"]


def join_tags(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Join BIO or IOBES tags to (label, first word, last word (exclusive)), as CoNLL's evaluation.

    An "I-" or "E-" after another label, or after "O", begins a span too.
    """
    spans = []
    open_label = None
    for index, tag in enumerate(tags):
        prefix, _, label = tag.partition("-")
        if prefix in ("I", "E") and label == open_label:
            spans[-1] = (label, spans[-1][1], index + 1)
        elif prefix != "O":
            spans.append((label, index, index + 1))
        open_label = label if prefix in ("B", "I") else None
    return spans
