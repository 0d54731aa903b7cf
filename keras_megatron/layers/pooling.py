import keras
from keras import ops

POOLINGS = ("mean", "cls", "max")


@keras.saving.register_keras_serializable(package="keras_megatron")
class TextPooling(keras.layers.Layer):
    """Makes one vector of a sequence; padding has no part in it.

    Args:
        pooling: str. `"mean"` or `"max"` of the tokens' hidden states, or `"cls"`, the first one.
        normalize: bool. Divide the vector by its length.

    Raises:
        ValueError: there is no such pooling.
    """

    def __init__(self, pooling: str = "mean", normalize: bool = True, **kwargs):
        super().__init__(**kwargs)
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
        self.pooling = pooling
        self.normalize = normalize

    def call(self, sequence_output, padding_mask):
        """Pool, in float32.

        Args:
            sequence_output: float (batch, sequence, hidden).
            padding_mask: int (batch, sequence), 1 for a token.

        Returns:
            float (batch, hidden); zeros for a row without any token, if the pooling is not "cls".
        """
        states = ops.cast(sequence_output, "float32")
        is_token = ops.expand_dims(ops.not_equal(padding_mask, 0), axis=-1)
        if self.pooling == "cls":
            pooled = states[:, 0, :]
        elif self.pooling == "mean":
            count = ops.sum(ops.cast(is_token, "float32"), axis=1)
            pooled = ops.sum(ops.where(is_token, states, 0.0), axis=1) / ops.maximum(count, 1.0)
        else:
            pooled = ops.max(ops.where(is_token, states, float("-3.4e38")), axis=1)
            pooled = ops.where(ops.any(is_token, axis=1), pooled, 0.0)
        if self.normalize:
            pooled = ops.normalize(pooled, axis=-1)
        return ops.cast(pooled, self.compute_dtype)

    def compute_output_shape(self, sequence_output_shape, padding_mask_shape):
        """Return (batch, hidden)."""
        return (sequence_output_shape[0], sequence_output_shape[-1])

    def get_config(self):
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "pooling": self.pooling,
            "normalize": self.normalize,
        }
