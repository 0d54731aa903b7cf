"""What Keras 3.15 leaves to be mended in quantized layers."""

from collections.abc import Iterable

import keras


def mend_quantized(layers: Iterable[keras.Layer]) -> None:
    """Mend layers that were quantized, or made from the configuration of such.

    A layer whose policy is one of a saved `DTypePolicyMap` keeps the map, which has no mode, where
    Keras looks for the policy as it saves the layer's weights. A table quantizes what it multiplies
    where it is tied to the output, and no gradient goes through that; here only its weights are
    quantized.
    """
    for layer in layers:
        mode = getattr(layer, "quantization_mode", None)
        if mode is None:
            continue
        if isinstance(layer.dtype_policy, keras.dtype_policies.DTypePolicyMap):
            layer._dtype_policy = layer.dtype_policy[layer.path]
        if isinstance(layer, keras.layers.Embedding):
            layer.inputs_quantizer = None
