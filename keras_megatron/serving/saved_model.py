"""A SavedModel that takes strings, for TensorFlow Serving."""

import pathlib

import tensorflow as tf
from keras.src.backend.tensorflow import core

from keras_megatron.patching import patched
from keras_megatron.serving.answers import Endpoint, string_endpoints
from keras_megatron.serving.graph_check import check_graph
from keras_megatron.serving.settings import ExportSettings
from keras_megatron.serving.tensors import tensor_endpoint
from keras_megatron.serving.warmup import write_warmup


def write_saved_model(model, folder: pathlib.Path, settings: ExportSettings) -> dict:
    """Write a SavedModel, and check what is in it.

    Args:
        model: a task or a backbone, on Keras's TensorFlow backend.
        folder: empty; it becomes the version's folder.
        settings: what was asked for.

    Returns:
        `signatures`, a dict of the names of inputs and outputs by signature, and `operations`, the
        names of the operations in the graph.

    Raises:
        ValueError: the graph has an operation that TensorFlow Serving does not have, or a path of
            this machine.
    """
    endpoints = {**string_endpoints(model, settings), "tensors": tensor_endpoint(model)}
    endpoints.setdefault("serving_default", endpoints["tensors"])
    module = tf.Module()
    with patched(core, slice_update=_slice_update):
        signatures = {name: _function(endpoint) for name, endpoint in endpoints.items()}
    # What is not held by the module is not written.
    module.variables_of_model = list(
        {v.ref(): v for function in signatures.values() for v in function.variables}.values()
    )
    try:
        tf.saved_model.save(module, str(folder), signatures=signatures)
    except tf.errors.OpError as error:
        raise ValueError(f"cannot write {folder}: {error.message}") from error
    operations = check_graph(folder)
    if settings.warmup:
        write_warmup(folder, endpoints)
    return {
        "signatures": {
            name: {
                "inputs": sorted(endpoint.inputs),
                "outputs": sorted(signatures[name].structured_outputs),
            }
            for name, endpoint in endpoints.items()
        },
        "operations": operations,
    }


def _function(endpoint: Endpoint):
    """Trace an endpoint; its inputs keep their names."""

    def answer(**inputs):
        return endpoint.answer(**inputs)

    specs = {
        name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in endpoint.inputs.items()
    }
    return tf.function(answer, autograph=False).get_concrete_function(**specs)


def _slice_update(inputs, start_indices, updates):
    """Do what `keras.ops.slice_update` does, whose own operation is one that XLA compiles."""
    begin = tf.convert_to_tensor(start_indices, tf.int32)
    return tf.raw_ops.TensorStridedSliceUpdate(
        input=inputs,
        begin=begin,
        end=begin + tf.shape(updates),
        strides=tf.ones_like(begin),
        value=updates,
    )
