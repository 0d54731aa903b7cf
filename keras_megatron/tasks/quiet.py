"""Leaves out warnings that a user of a task can do nothing about."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


def _is_of_use(record: logging.LogRecord) -> bool:
    # KerasHub reads 8 batches ahead, and Grain wishes for 16.
    return "is smaller than num_threads" not in record.getMessage()


@contextlib.contextmanager
def heads_are_trained() -> Iterator[None]:
    """Leave out that a head which a preset does not have is random: it is about to be trained."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is random until it is trained")
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what Grain says of KerasHub's settings, and Keras of parts that a task lacks."""
    logger = logging.getLogger("absl")
    logger.addFilter(_is_of_use)
    try:
        with warnings.catch_warnings():
            # Tasks on single tokens have no use for the pooler.
            warnings.filterwarnings("ignore", r"Gradients do not exist for variables \['pooled_")
            # What has no kernel, such as dropout, stays as it is.
            warnings.filterwarnings("ignore", r"Layer \w+ does not have a `quantize` method")
            yield
    finally:
        logger.removeFilter(_is_of_use)
