"""Exact match and F1 of answers, as SQuAD's official scripts count them.

evaluate-v1.1.py and evaluate-v2.0.py of https://rajpurkar.github.io/SQuAD-explorer: answers are
compared without case, punctuation, articles and extra spaces; of several right answers the nearest
counts; where there is no answer, both numbers are 1 for "" and 0 for anything else.
"""

import collections
import re
import string
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score the answers to questions.

    Args:
        predictions: an answer a question, "" for none.
        answers: the right answers to each question; none of them if it has no answer.

    Returns:
        `exact_match` and `f1`, from 0 to 1. If some questions have no answer also `answered_f1` and
        `unanswered_accuracy`: of those that have one, and of those that do not.

    Raises:
        ValueError: there are other predictions than questions, or none.
    """
    if len(predictions) != len(answers) or not predictions:
        raise ValueError(f"there are {len(predictions)} predictions for {len(answers)} questions")
    exact, f1, answerable = [], [], []
    for prediction, given in zip(predictions, answers, strict=True):
        # What normalizes to nothing ("the") is no answer to compare with.
        right = [normalized for text in given if (normalized := normalize_answer(text))]
        ours = normalize_answer(prediction)
        answerable.append(bool(right))
        exact.append(max(float(ours == text) for text in right or [""]))
        f1.append(max(_f1(ours.split(), text.split()) for text in right or [""]))
    scores = {"exact_match": _mean(exact), "f1": _mean(f1)}
    if not all(answerable):
        unanswered = [score for score, has in zip(exact, answerable, strict=True) if not has]
        scores["unanswered_accuracy"] = _mean(unanswered)
        if any(answerable):
            answered = [score for score, has in zip(f1, answerable, strict=True) if has]
            scores["answered_f1"] = _mean(answered)
    return scores


def normalize_answer(text: str) -> str:
    """Lower the case, drop punctuation and articles, and join words by single spaces."""
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _f1(prediction: list[str], right: list[str]) -> float:
    if not prediction or not right:
        return float(prediction == right)
    common = (collections.Counter(prediction) & collections.Counter(right)).total()
    return 2 * common / (len(prediction) + len(right))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
