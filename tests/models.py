"""The small models that the tests share."""

import keras
import numpy as np
from huggingface import SMALL

from keras_megatron import MegatronBertBackbone


def small_backbone(**arguments) -> MegatronBertBackbone:
    """Return a backbone of the shape of `huggingface.SMALL`, with random weights."""
    return MegatronBertBackbone(
        **{
            "vocabulary_size": SMALL["vocab_size"],
            "num_layers": SMALL["num_hidden_layers"],
            "num_heads": SMALL["num_attention_heads"],
            "hidden_dim": SMALL["hidden_size"],
            "intermediate_dim": SMALL["intermediate_size"],
            "max_sequence_length": SMALL["max_position_embeddings"],
            **arguments,
        }
    )


def encoder_inputs(inputs: dict) -> dict[str, np.ndarray]:
    """Drop the mask positions, which the backbone does not take."""
    return {name: array for name, array in inputs.items() if name != "mask_positions"}


def as_numpy(tree):
    """Turn a structure of backend tensors into numpy arrays."""
    return keras.tree.map_structure(keras.ops.convert_to_numpy, tree)


def randomize(model: keras.Model, seed: int = 0) -> None:
    """Give every weight a random value, so that no bias or LayerNorm is trivial."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        center = 1.0 if weight.path.endswith("gamma") else 0.0
        weight.assign(center + 0.1 * rng.standard_normal(weight.shape))
