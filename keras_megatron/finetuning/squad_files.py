"""The nesting of SQuAD 1.1 and 2.0 files (https://rajpurkar.github.io/SQuAD-explorer)."""

from collections.abc import Iterator
from typing import Any


def squad_records(name: str, content: Any) -> Iterator[tuple[str, dict]]:
    """Walk through the questions of a SQuAD file.

    Args:
        name: of the file, for errors.
        content: what JSON made of it.

    Yields:
        For each question (place, values): values has `id`, `question`, `context` and, if the file
        has them, `answers`: a list of dicts of `text` and `answer_start`, none of them if the
        question `is_impossible`.

    Raises:
        ValueError: a part is missing or of another type; the error names the question.
    """
    for article in _get(content, "data", list, name):
        for paragraph in _get(article, "paragraphs", list, f"{name}, an article"):
            context = _get(paragraph, "context", str, f"{name}, a paragraph")
            for number, question in enumerate(_get(paragraph, "qas", list, name)):
                place = f"{name}, question {number} of the paragraph {context[:40]!r}"
                identity = str(_get(question, "id", str | int, place))
                place = f"{name}, question {identity}"
                values = {"id": identity, "question": _get(question, "question", str, place)}
                values["context"] = context
                if question.get("is_impossible") is True:
                    values["answers"] = []
                elif "answers" in question:
                    values["answers"] = _get(question, "answers", list, place)
                yield place, values


def check_answers(answers: Any, context: str, place: str) -> None:
    """Make sure that answers are parts of their context.

    Raises:
        ValueError: an answer is not in the context at `answer_start`.
    """
    if not isinstance(answers, list):
        raise ValueError(f"{place}: answers must be a list, not {type(answers).__name__}")
    for answer in answers:
        text = _get(answer, "text", str, place)
        start = _get(answer, "answer_start", int, place)
        if not text:
            raise ValueError(
                f"{place}: an answer is empty: for no answer give is_impossible (or no answers)"
            )
        if start < 0 or context[start : start + len(text)] != text:
            raise ValueError(
                f"{place}: the answer {text[:60]!r} is not in its context at character {start}"
            )


def _get(values: Any, key: str, kind: Any, place: str) -> Any:
    if not isinstance(values, dict) or key not in values:
        raise ValueError(f"{place}: {key!r} is missing; SQuAD's form of JSON is expected")
    if not isinstance(values[key], kind) or isinstance(values[key], bool):
        raise ValueError(f"{place}: {key!r} is of type {type(values[key]).__name__}")
    return values[key]
