"""What a fine-tuned model is worth: metrics per task, from scikit-learn, SciPy and seqeval."""

import math
import warnings
from collections.abc import Sequence

import numpy as np


def classification_scores(
    labels: Sequence[int], predictions: Sequence[int], num_classes: int
) -> dict[str, float]:
    """Score classes.

    Args:
        labels: a class a sample.
        predictions: as many.
        num_classes: how many classes there are, whether or not all of them occur.

    Returns:
        `accuracy`; `f1` of class 1 if there are two classes, as GLUE counts it, else the mean over
        classes; `matthews`, Matthews' correlation.
    """
    from sklearn import metrics

    binary = num_classes == 2
    seen = set(labels) | set(predictions)
    return {
        "accuracy": float(metrics.accuracy_score(labels, predictions)),
        "f1": float(
            metrics.f1_score(
                labels, predictions, average="binary" if binary else "macro", zero_division=0.0
            )
        ),
        # 0 where all is the same, as scikit-learn has it, but without a warning.
        "matthews": float(metrics.matthews_corrcoef(labels, predictions)) if len(seen) > 1 else 0.0,
    }


def regression_scores(labels: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Score numbers.

    Returns:
        `pearson` and `spearman` correlations, 0 where labels or predictions are all the same;
        `mean_squared_error`.
    """
    from scipy import stats
    from sklearn import metrics

    labels, predictions = np.asarray(labels, "f8"), np.asarray(predictions, "f8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        correlations = [
            float(correlation(labels, predictions).statistic) if len(labels) > 1 else 0.0
            for correlation in (stats.pearsonr, stats.spearmanr)
        ]
    pearson, spearman = (0.0 if math.isnan(value) else value for value in correlations)
    return {
        "pearson": pearson,
        "spearman": spearman,
        "mean_squared_error": float(metrics.mean_squared_error(labels, predictions)),
    }


def tag_scores(
    tags: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]], spans: bool
) -> dict[str, float]:
    """Score the tags of words.

    Args:
        tags: a list a sentence, with a tag a word.
        predictions: as many.
        spans: whether the tags are of BIO or IOBES, so that whole spans are scored too.

    Returns:
        `accuracy` of the words; with spans `f1`, `precision` and `recall`: a span is right if its
        type and both ends are.
    """
    from seqeval import metrics as seqeval
    from sklearn import metrics

    flat = [[tag for sentence in side for tag in sentence] for side in (tags, predictions)]
    scores = {"accuracy": float(metrics.accuracy_score(*flat))}
    if spans:
        tags, predictions = list(map(list, tags)), list(map(list, predictions))
        for name in ("f1", "precision", "recall"):
            score = getattr(seqeval, f"{name}_score")
            scores[name] = float(score(tags, predictions, zero_division=0))
    return scores
