"""What a model of ours is compared with: the `transformers` model of the same weights."""

import functools

import keras
import numpy as np
from tiny_release import hf_model

TOLERANCE = 2e-5
INPUTS = {
    "token_ids": np.random.default_rng(0).integers(0, 30000, (2, 9)).astype("int32"),
    "segment_ids": np.repeat([[0, 0, 0, 0, 1, 1, 1, 1, 1]], 2, 0).astype("int32"),
    "padding_mask": np.array([[1] * 9, [1] * 6 + [0] * 3], "int32"),
    "mask_positions": np.array([[1, 4], [2, 5]], "int32"),
}


@functools.cache
def expected_logits():
    """Masked-LM logits (batch, masks, vocabulary) by `transformers`."""
    import torch

    with torch.no_grad():
        outputs = hf_model()(
            input_ids=torch.tensor(INPUTS["token_ids"]),
            token_type_ids=torch.tensor(INPUTS["segment_ids"]),
            attention_mask=torch.tensor(INPUTS["padding_mask"]),
        )
    logits = outputs.prediction_logits.numpy()
    return np.take_along_axis(logits, INPUTS["mask_positions"][..., None], axis=1)


def logits_error(task):
    """The largest difference of a task's logits."""
    logits = keras.ops.convert_to_numpy(task(INPUTS, training=False))
    return float(np.abs(logits - expected_logits()).max())


def assert_same_table(backbone, hf=None):
    """The token tables are equal, bit by bit."""
    table = (hf or hf_model().bert).embeddings.word_embeddings.weight.detach().numpy()
    ours = keras.ops.convert_to_numpy(backbone.token_embedding.embeddings)
    np.testing.assert_array_equal(ours, table)
