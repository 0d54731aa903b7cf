"""What the tasks put on a backbone, and the loss of those that predict tokens."""

import keras

from keras_megatron.layers.common import normal_initializer
from keras_megatron.layers.masked_lm_head import MaskedLMHead


def masked_lm_head(backbone, activation: str) -> MaskedLMHead:
    """Return the head `mlm_head` of a backbone, tied to its word embeddings."""
    return MaskedLMHead(
        token_embedding=backbone.token_embedding,
        activation=activation,
        layer_norm_epsilon=backbone.layer_norm_epsilon,
        initializer_range=backbone.initializer_range,
        dtype=backbone.dtype_policy,
        name="mlm_head",
    )


def dense_head(
    backbone, units: int, name: str, activation: str | None = None
) -> keras.layers.Dense:
    """Return a dense head for a backbone, by the name that it has in the table of weight names."""
    return keras.layers.Dense(
        units,
        activation=activation,
        kernel_initializer=normal_initializer(backbone.initializer_range),
        dtype=backbone.dtype_policy,
        name=name,
    )


def token_cross_entropy() -> keras.losses.Loss:
    """Return the cross entropy that is `sum(loss * weight) / sum(weight)` over a batch."""
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
