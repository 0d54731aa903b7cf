"""The active backend's fastest way to project, to attend, to normalize and to drop out."""

import contextlib

import keras
from keras import ops

if keras.config.backend() == "torch":
    from keras_megatron.layers.torch_compiled import transform
    from keras_megatron.layers.torch_dropout import Dropout
    from keras_megatron.layers.torch_kernels import (
        Dense,
        EinsumDense,
        LayerNormalization,
        attend,
        frozen_weights,
        run,
        score_words,
    )
else:
    Dense, EinsumDense = keras.layers.Dense, keras.layers.EinsumDense
    Dropout = keras.layers.Dropout
    LayerNormalization = keras.layers.LayerNormalization
    # As PyTorch's own are called in files.
    for _layer in (Dense, Dropout, EinsumDense, LayerNormalization):
        keras.saving.get_custom_objects()[f"keras_megatron>{_layer.__name__}"] = _layer

    def frozen_weights() -> contextlib.AbstractContextManager:
        """Say that weights stay as they are; nothing to gain by it here."""
        return contextlib.nullcontext()

    def run(layer: keras.layers.Layer, x, *args, **kwargs):
        """Call a layer within another's `call`."""
        return layer(x, *args, **kwargs)

    def score_words(embedding: keras.layers.ReversibleEmbedding, x):
        """Return the products of x (..., width) with all words of a table."""
        return embedding(x, reverse=True)

    def transform(layer, x, mask, training):
        """Leave it to the layer: all of a step is compiled here, or nothing."""


def layer_norm(epsilon: float, dtype, name: str) -> keras.layers.LayerNormalization:
    """Return a LayerNorm over the last axis, whose statistics are computed in float32."""
    return LayerNormalization(epsilon=epsilon, dtype=dtype, name=name)


if keras.config.backend() == "jax":
    from keras_megatron.layers.jax_kernels import apart, attend
else:

    def apart(x):
        """Return `x`; see `jax_kernels.apart`."""
        return x


if keras.config.backend() == "tensorflow":

    def attend(query_BQNH, key_BKNH, value_BKNH, mask, dropout: float):
        """Leave it to the layer: TensorFlow has no fused attention."""

    def look_up(embedding: keras.layers.Embedding, ids):
        """Return the rows of a table, whose gradient is a whole one.

        Along the first axis TensorFlow gives one a row for each time that an id occurs, and Keras's
        optimizers square these before they add them up.
        """
        if embedding.quantization_mode is not None or keras.distribution.distribution():
            return embedding(ids)  # sums up over devices
        table = ops.expand_dims(embedding.embeddings, 0)
        rows = ops.take(table, ops.cast(ids, "int32"), axis=1)[0]
        return ops.cast(rows, embedding.compute_dtype)
else:

    def look_up(embedding: keras.layers.Embedding, ids):
        """Return the rows of a table."""
        return embedding(ids)


__all__ = [
    "Dense",
    "Dropout",
    "EinsumDense",
    "apart",
    "attend",
    "frozen_weights",
    "layer_norm",
    "look_up",
    "run",
    "score_words",
    "transform",
]
