"""Heads of transformers next to the same ones here."""

import numpy as np
import torch
from huggingface import random_model, torch_inputs

SMALL_TOLERANCE = 2e-5


def both(task: type, name: str, folder, **config):
    """Return a random model of transformers by its name, and the same one here without a tokenizer.

    Args:
        task: the class here.
        name: of the class there.
        folder: where to save the model.
        **config: changes of its configuration.
    """
    reference = random_model(name, **config)
    reference.save_pretrained(folder)
    return reference, task.from_preset(str(folder), preprocessor=None)


def reference_outputs(reference, inputs: dict, **arguments):
    """Return what the reference makes of inputs, its `logits` and, with labels, its `loss`."""
    with torch.no_grad():
        return reference(**torch_inputs(inputs), **arguments)


def rms(actual, expected) -> float:
    """Return the root of the mean squared difference."""
    return float(np.sqrt(((np.asarray(actual) - np.asarray(expected)) ** 2).mean()))
