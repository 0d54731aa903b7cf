"""What the answers of all tasks share."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

TEXTS = tf.TensorSpec([None], tf.string)  # (batch,)


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A signature of a SavedModel.

    Attributes:
        inputs: what it takes, a `tf.TensorSpec` by name.
        answer: function of tensors of these names that returns a dict of tensors.
        example: values for each input, of one sample: what warms the server up.
    """

    inputs: dict[str, tf.TensorSpec]
    answer: Callable[..., dict[str, tf.Tensor]]
    example: dict[str, list]


def logits_of(model, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
    """Run a model on ids; what it returns in another precision becomes float32."""
    outputs = model(inputs, training=False)
    return tf.nest.map_structure(lambda array: tf.cast(array, tf.float32), outputs)


def encode(model, first: tf.Tensor, second: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
    """Tokenize texts or pairs, cut as the task's preprocessor does; the longest one sets the width.

    Args:
        model: the task.
        first: string tensor (batch,).
        second: as many, or None.
    """
    tokenizer = model.preprocessor.tokenizer
    return tokenizer.encode(first, second, most_tokens(model), pad_to_longest=True)


def most_tokens(model) -> int:
    """Return how many tokens a row may have."""
    return min(model.preprocessor.sequence_length, model.backbone.max_sequence_length)


def names_of(model) -> list[str]:
    """Return the names of a classifier's classes; their numbers if it has none."""
    return list(model.preprocessor.class_names or map(str, range(model.num_classes)))


def dense(rows: tf.RaggedTensor, padding) -> tf.Tensor:
    """Pad rows, (batch, any number) or (batch, any number, k), to the longest one."""
    return rows.to_tensor(default_value=tf.cast(padding, rows.dtype))
