"""What the answers of all tasks share."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from keras_megatron.layers.token_inputs import INPUTS

TEXTS = tf.TensorSpec([None], tf.string)  # (batch,)
WINDOWS = 32  # of long texts that the model reads at once


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
    rows = tf.shape(inputs["token_ids"])[0]
    # An empty batch is run as one row of one position: layers look at the first one.
    missing = tf.cast(rows == 0, tf.int32)

    def filled(name: str, array: tf.Tensor) -> tf.Tensor:
        columns = missing if name in INPUTS else 0
        inner = [[0, 0]] * (array.shape.rank - 2)
        return tf.pad(array, [[0, missing], *inner, [0, columns]])

    outputs = model({name: filled(name, x) for name, x in inputs.items()}, training=False)
    return tf.nest.map_structure(lambda array: tf.cast(array, tf.float32)[:rows], outputs)


def logits_of_windows(model, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
    """Run a model as `logits_of`, `WINDOWS` rows at a time: so long texts take no more memory."""
    steps = tf.maximum(-(-tf.shape(inputs["token_ids"])[0] // WINDOWS), 1)

    def step(done, parts):
        first = done * WINDOWS
        part = {name: array[first : first + WINDOWS] for name, array in inputs.items()}
        return done + 1, parts.write(done, logits_of(model, part))

    # The last part may have fewer rows.
    parts = tf.TensorArray(tf.float32, steps, infer_shape=False, element_shape=[None] * 3)
    _, parts = tf.while_loop(lambda done, _: done < steps, step, (0, parts), parallel_iterations=1)
    return parts.concat()


def encode(
    model, first: tf.Tensor, second: tf.Tensor | None = None, most: int | None = None
) -> dict[str, tf.Tensor]:
    """Tokenize texts or pairs, cut what is too long; the longest one sets the width.

    Args:
        model: the task.
        first: string tensor (batch,).
        second: as many, or None.
        most: tokens that a row may have; `most_tokens` by default, as the preprocessor cuts.
    """
    tokenizer = model.preprocessor.tokenizer
    return tokenizer.encode(first, second, most or most_tokens(model), pad_to_longest=True)


def most_tokens(model) -> int:
    """Return how many tokens a row may have."""
    return min(model.preprocessor.sequence_length, model.backbone.max_sequence_length)


def names_of(model) -> list[str]:
    """Return the names of a classifier's classes; their numbers if it has none."""
    return list(model.preprocessor.class_names or map(str, range(model.num_classes)))


def dense(rows: tf.RaggedTensor, padding) -> tf.Tensor:
    """Pad rows, (batch, any number) or (batch, any number, k), to the longest one."""
    return rows.to_tensor(default_value=tf.cast(padding, rows.dtype))
