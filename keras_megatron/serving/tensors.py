"""The signature that takes a model's own inputs and returns its outputs."""

import tensorflow as tf

from keras_megatron.serving.answers import Endpoint
from keras_megatron.serving.answers.endpoint import logits_of

_SIZE = 2  # of each dimension, in the example


def tensor_endpoint(model) -> Endpoint:
    """Return the signature `tensors`: ids in, float32 outputs out.

    Outputs are `logits`; `embedding` of an embedder; `mlm` and `nsp` of a pretrainer;
    `sequence_output` and `pooled_output` of a backbone.
    """
    name = "embedding" if type(model).__name__.endswith("Embedder") else "logits"
    specs = {key: tf.TensorSpec(array.shape, array.dtype) for key, array in model.input.items()}

    def answer(**inputs):
        outputs = logits_of(model, inputs)
        return outputs if isinstance(outputs, dict) else {name: outputs}

    example = {key: tf.zeros(_sizes(key, spec), spec.dtype).numpy() for key, spec in specs.items()}
    return Endpoint(specs, answer, example)


def _sizes(name: str, spec: tf.TensorSpec) -> list[int]:
    """Return the shape of an example: every size that is open is small."""
    return [1, *(_SIZE if size is None else size for size in spec.shape[1:])]
