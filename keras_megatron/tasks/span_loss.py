"""How well the ends of answers are predicted: loss and metric of question answering."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_megatron")
class SpanLoss(keras.losses.Loss):
    """Mean of two cross entropies over positions: of an answer's first token and of its last.

    `y_true` is int (batch, 2), positions of the first and last token; one at or beyond the end of
    the sequence is left out, as `transformers.MegatronBertForQuestionAnswering` does. `y_pred` is
    logits (batch, sequence, 2).
    """

    def __init__(self, name: str = "span_loss", **kwargs):
        super().__init__(name=name, **kwargs)

    def call(self, y_true, y_pred):
        """Return a loss a row, (batch,); their mean is the mean over the ends that count."""
        length = ops.shape(y_pred)[1]
        positions = ops.maximum(ops.cast(y_true, "int32"), 0)
        counts = ops.cast(positions < length, y_pred.dtype)
        log_probabilities = ops.log_softmax(y_pred, axis=1)
        index = ops.expand_dims(ops.minimum(positions, length - 1), axis=1)  # (batch, 1, 2)
        losses = -ops.squeeze(ops.take_along_axis(log_probabilities, index, axis=1), axis=1)
        rows = ops.cast(ops.shape(y_pred)[0], y_pred.dtype)
        scale = rows / ops.maximum(ops.sum(counts, axis=0), 1)
        return ops.mean(losses * counts * scale, axis=-1)


@keras.saving.register_keras_serializable(package="keras_megatron")
def span_accuracy(y_true, y_pred):
    """Say of each row, (batch,), whether both ends have the highest logit: 1 or 0.

    Args:
        y_true: int (batch, 2), positions of the first and last token.
        y_pred: logits (batch, sequence, 2).
    """
    right = ops.cast(y_true, "int32") == ops.cast(ops.argmax(y_pred, axis=1), "int32")
    return ops.cast(ops.all(right, axis=-1), "float32")
