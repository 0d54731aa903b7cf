"""How well classes are predicted: loss and metric of labels that are classes or probabilities."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_megatron")
class ClassCrossEntropy(keras.losses.Loss):
    """Cross entropy of labels that are classes (batch,), or probabilities (batch, classes).

    Args:
        from_logits: bool. Whether predictions are logits instead of probabilities.
        reduction: str. Of `keras.losses.Loss`.
        name: str. Of the loss.
    """

    def __init__(
        self,
        from_logits: bool = True,
        reduction="sum_over_batch_size",
        name: str = "class_cross_entropy",
        **kwargs,
    ):
        super().__init__(name=name, reduction=reduction, **kwargs)
        self.from_logits = from_logits

    def call(self, y_true, y_pred):
        """Return the loss of each sample (batch,)."""
        if _are_rows(y_true, y_pred):
            return ops.categorical_crossentropy(y_true, y_pred, from_logits=self.from_logits)
        classes = ops.reshape(ops.cast(y_true, "int32"), ops.shape(y_pred)[:-1])
        return ops.sparse_categorical_crossentropy(classes, y_pred, from_logits=self.from_logits)

    def get_config(self) -> dict:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "from_logits": self.from_logits}


@keras.saving.register_keras_serializable(package="keras_megatron")
class ClassAccuracy(keras.metrics.MeanMetricWrapper):
    """Share of samples whose most probable class is the labelled one.

    Labels are those of `ClassCrossEntropy`; in one fit the training data may have probabilities and
    the validation data classes.
    """

    def __init__(self, name: str = "accuracy", dtype=None):
        super().__init__(fn=_is_right, name=name, dtype=dtype)
        self._direction = "up"

    def get_config(self) -> dict:
        """Return the arguments of the constructor."""
        return {"name": self.name, "dtype": self.dtype}


def _is_right(y_true, y_pred):
    if _are_rows(y_true, y_pred):
        classes = ops.argmax(y_true, axis=-1)
    else:
        classes = ops.reshape(y_true, ops.shape(y_pred)[:-1])
    predicted = ops.argmax(y_pred, axis=-1)
    return ops.cast(ops.equal(ops.cast(classes, predicted.dtype), predicted), "float32")


def _are_rows(y_true, y_pred) -> bool:
    return len(y_true.shape) == len(y_pred.shape) and y_true.shape[-1] == y_pred.shape[-1]
