"""Batches of any number of samples, for devices that take equal parts."""

import keras
import numpy as np


def filled_up(batch, multiple: int) -> tuple:
    """Repeat a batch's last sample until the number of samples is a multiple.

    For predictions, of which those beyond the own samples are left out by `cut`.

    Args:
        batch: a structure of arrays or tensors (samples, ...), and None.
        multiple: into how many parts the batch is split.

    Returns:
        The batch, and how many samples are its own.
    """
    samples = len(next(leaf for leaf in keras.tree.flatten(batch) if leaf is not None))
    more = -samples % multiple
    if not more:
        return batch, samples
    index = np.minimum(np.arange(samples + more), samples - 1)
    return keras.tree.map_structure(
        lambda leaf: None if leaf is None else leaf[index], batch
    ), samples


def cut(outputs, samples: int):
    """Return what was predicted for the first samples."""
    return keras.tree.map_structure(lambda leaf: leaf[:samples], outputs)
