import keras
from keras import ops

# Of a choice that is not there. Its probability is 0 in float32, and float16 has this number too.
ABSENT = -1e4


@keras.saving.register_keras_serializable(package="keras_megatron")
class FlattenChoices(keras.layers.Layer):
    """Makes rows of a batch's choices: (batch, choices, sequence) to (rows, sequence)."""

    def call(self, inputs):
        """Reshape an array, any number of whose sizes may be unknown before the model runs."""
        return ops.reshape(inputs, (-1, ops.shape(inputs)[-1]))

    def compute_output_shape(self, input_shape):
        """Return (rows, sequence)."""
        return (None, input_shape[-1])


@keras.saving.register_keras_serializable(package="keras_megatron")
class GatherChoices(keras.layers.Layer):
    """Puts the scores of choices side by side; a choice without any token is never the best."""

    def call(self, scores, padding_mask):
        """Gather scores.

        Args:
            scores: float (rows, 1), as of `FlattenChoices`.
            padding_mask: int (batch, choices, sequence).

        Returns:
            float (batch, choices), `ABSENT` for the choices whose padding mask is 0 throughout.
        """
        is_there = ops.any(ops.not_equal(padding_mask, 0), axis=-1)
        scores = ops.reshape(scores, ops.shape(is_there))
        return ops.where(is_there, scores, ops.cast(ABSENT, scores.dtype))

    def compute_output_shape(self, scores_shape, padding_mask_shape):
        """Return (batch, choices)."""
        return tuple(padding_mask_shape[:2])
