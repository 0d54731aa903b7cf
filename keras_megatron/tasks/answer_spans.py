"""Answers in SQuAD's forms to the characters of their contexts."""

from collections.abc import Mapping, Sequence

import numpy as np


def answer_spans(answers: Sequence, contexts: Sequence[str]) -> list[tuple[int, int] | None]:
    """Check answers, and say where they are.

    Args:
        answers: one an example: a dict of `text` and `answer_start` (a character of the context),
            or of a list of each, or a list of such dicts. None, or nothing in it, if the context
            has no answer. Of several the first is taken.
        contexts: one an example.

    Returns:
        For each example the characters [start, end) of its answer, or None.

    Raises:
        ValueError: an answer has another form, or is not in its context at `answer_start`.
    """
    spans = []
    for index, (answer, context) in enumerate(zip(answers, contexts, strict=True)):
        found = [_locate(text, start, context, index) for text, start in _pairs(answer, index)]
        spans.append(found[0] if found else None)
    return spans


def _pairs(answer, index: int) -> list[tuple]:
    """Return the (text, start) of the forms that an example's answer may have."""
    if answer is None:
        return []
    if isinstance(answer, list | tuple | np.ndarray):
        return [pair for one in answer for pair in _pairs(one, index)]
    if not isinstance(answer, Mapping) or not {"text", "answer_start"} <= set(answer):
        raise ValueError(
            f"answer {index} must be a dict of 'text' and 'answer_start', a list of these, or None "
            f"if there is no answer, not {answer!r:.80}"
        )
    text, start = answer["text"], answer["answer_start"]
    if text is None or isinstance(text, str):
        return [(text, start)] if text else []
    if not all(isinstance(given, list | tuple | np.ndarray) for given in (text, start)):
        raise ValueError(
            f"answer {index} must have a text and an answer_start, or a list of each, not "
            f"{answer!r:.80}"
        )
    texts, starts = list(text), list(start)
    if len(texts) != len(starts):
        raise ValueError(f"answer {index} has {len(texts)} texts but {len(starts)} answer_starts")
    return list(zip(texts, starts, strict=True))


def _locate(text, start, context: str, index: int) -> tuple[int, int]:
    if not isinstance(text, str) or not text:
        raise ValueError(f"the text of answer {index} must be a str that is not empty: {text!r}")
    if not isinstance(start, int | np.integer) or isinstance(start, bool):
        raise ValueError(f"the answer_start of answer {index} must be an integer, not {start!r}")
    if start < 0 or context[start : start + len(text)] != text:
        where = context.find(text)
        hint = f"it is at {where}" if where >= 0 else "nor anywhere else in it"
        raise ValueError(
            f"answer {index}, {text[:60]!r}, is not in its context at answer_start={start}: {hint}"
        )
    return int(start), int(start) + len(text)
