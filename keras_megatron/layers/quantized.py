"""Quantized layers that are loaded again."""

from collections.abc import Iterable

import keras


def mend_quantized(layers: Iterable[keras.Layer]) -> None:
    """Give quantized layers that were made from a configuration what Keras 3.15 forgets.

    A layer whose policy is one of a saved `DTypePolicyMap` keeps the map, which has no mode, where
    Keras looks for the policy as it saves the layer's weights. And a table in int4 quantizes its
    weights only, but not any more once it is loaded.
    """
    for layer in layers:
        mode = getattr(layer, "quantization_mode", None)
        if mode is None:
            continue
        if isinstance(layer.dtype_policy, keras.dtype_policies.DTypePolicyMap):
            layer._dtype_policy = layer.dtype_policy[layer.path]
        if mode == "int4" and isinstance(layer, keras.layers.Embedding):
            layer.inputs_quantizer = None
