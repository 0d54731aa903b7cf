"""From raw samples to a model's numbers, for the methods that give answers."""

import numpy as np

from keras_megatron.tasks.samples import as_columns, by_position, check_lengths, check_positive


def sample_logits(task, x, batch_size: int, **options) -> np.ndarray:
    """Return the logits of raw samples.

    Args:
        task: a `MegatronBertTask` with a preprocessor.
        x: a list of samples, or a tuple of lists; at least one sample.
        batch_size: samples a step.
        **options: of the preprocessor's `preprocess`.

    Returns:
        float32 (samples, ...).

    Raises:
        ValueError: there is no preprocessor, there are no samples, something is not a sample, or
            `batch_size` is not a positive integer.
    """
    preprocessor = task.preprocessor
    if preprocessor is None:
        raise ValueError("raw samples need a preprocessor, but this model was made with none")
    check_positive("batch_size", batch_size)
    columns = as_columns(by_position(x))
    for column in columns:
        if not isinstance(column, list | np.ndarray):
            raise ValueError(
                f"samples must be in lists, not in a {type(column).__name__}: give a list of str, "
                "or a str"
            )
        if isinstance(column, np.ndarray) and not column.ndim:
            raise ValueError("give a list of texts, not an array without axes")
    task.check_length()
    check_lengths(columns)
    preprocessor.check_samples(columns)
    parts = []
    for start in range(0, len(columns[0]), batch_size):
        batch = tuple(list(column[start : start + batch_size]) for column in columns)
        parts.append(task.logits(preprocessor.preprocess(batch, **options), batch_size))
    return np.concatenate(parts)


def is_single(x) -> bool:
    """Say whether `x` is one text, or one pair of texts."""
    return all(isinstance(column, str) for column in as_columns(x))


def as_batch(x):
    """Turn one text, or one pair, into lists of one."""
    return tuple([column] for column in x) if isinstance(x, tuple) else [x]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits along the last axis."""
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the probability of each logit by itself."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits))
