"""The layers of the model as operations of an `OnnxGraph`; each says which layer it stands for."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_megatron.layers.choices import ABSENT
from keras_megatron.layers.common import gelu_approximate
from keras_megatron.serving.onnx_graph import OnnxGraph

# Finite, so that a row with nothing to attend to is uniform; and a number in bfloat16, too.
_HIDDEN = -3e38
# Operations, one after the other, that are an activation of Keras; `silu` is made of two.
_ACTIVATIONS = {
    keras.activations.elu: ("Elu", {}),
    keras.activations.exponential: ("Exp", {}),
    keras.activations.gelu: ("Gelu", {}),
    gelu_approximate: ("Gelu", {"approximate": "tanh"}),
    keras.activations.hard_sigmoid: ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    keras.activations.hard_silu: ("HardSwish", {}),
    keras.activations.leaky_relu: ("LeakyRelu", {"alpha": 0.2}),
    keras.activations.linear: None,
    keras.activations.log_softmax: ("LogSoftmax", {"axis": -1}),
    keras.activations.mish: ("Mish", {}),
    keras.activations.relu: ("Relu", {}),
    keras.activations.selu: ("Selu", {}),
    keras.activations.sigmoid: ("Sigmoid", {}),
    keras.activations.softmax: ("Softmax", {"axis": -1}),
    keras.activations.softplus: ("Softplus", {}),
    keras.activations.softsign: ("Softsign", {}),
    keras.activations.tanh: ("Tanh", {}),
}


def numbers(variable) -> np.ndarray:
    """Return a weight as float32."""
    return np.asarray(keras.ops.convert_to_numpy(variable)).astype("float32", copy=False)


def activation(graph: OnnxGraph, function, x: str) -> str:
    """Apply an activation of Keras.

    Raises:
        ValueError: ONNX has none like it.
    """
    if function is keras.activations.silu:
        return graph.node("Mul", x, graph.node("Sigmoid", x))
    if function not in _ACTIVATIONS:
        known = sorted({f.__name__ for f in (*_ACTIVATIONS, keras.activations.silu)})
        name = getattr(function, "__name__", function)
        raise ValueError(
            f"the activation {name!r} has no counterpart in ONNX: use one of {', '.join(known)}, "
            "or export a SavedModel"
        )
    if _ACTIVATIONS[function] is None:
        return x
    operation, attributes = _ACTIVATIONS[function]
    return graph.node(operation, x, **attributes)


def layer_norm(graph: OnnxGraph, layer, name: str, x: str) -> str:
    """`keras.layers.LayerNormalization` over the last axis."""
    gain = graph.weight(f"{name}.gamma", numbers(layer.gamma))
    bias = graph.weight(f"{name}.beta", numbers(layer.beta))
    return graph.node("LayerNormalization", x, gain, bias, axis=-1, epsilon=layer.epsilon)


def dense(graph: OnnxGraph, layer, name: str, x: str, exact: bool = False) -> str:
    """`keras.layers.Dense`, in float32 if `exact`."""
    linear = graph.float_linear if exact else graph.linear
    return activation(
        graph, layer.activation, linear(x, name, numbers(layer.kernel), numbers(layer.bias))
    )


def embeddings(graph: OnnxGraph, layer, token_ids: str, segment_ids: str) -> str:
    """`MegatronBertEmbedding` without dropout. Too long a sequence fails in the last sum."""
    tokens = graph.rows(token_ids, "token_embedding", numbers(layer.token_embedding.embeddings))
    segments = graph.weight("segment_embedding", numbers(layer.segment_embedding.embeddings))
    positions = graph.weight("position_embedding", numbers(layer.position_embedding.embeddings))
    length = graph.sizes(token_ids, 1, 2)
    summed = graph.node("Add", tokens, graph.node("Gather", segments, segment_ids))
    positions = graph.node("Slice", positions, graph.ints(0), length, graph.ints(0))
    return graph.node("Add", summed, positions)


def attention_bias(graph: OnnxGraph, padding_mask: str, causal: bool) -> str:
    """What is added to the scores: 0 where a query may attend to a key, as `encode` says."""
    seen = graph.node("Unsqueeze", graph.cast(padding_mask, "bool"), graph.ints(1, 2))
    if causal:
        length = graph.node("Squeeze", graph.sizes(padding_mask, 1, 2))
        positions = graph.node("Range", graph.number(0, "int64"), length, graph.number(1, "int64"))
        query = graph.node("Unsqueeze", positions, graph.ints(1))
        past = graph.node("GreaterOrEqual", query, positions)
        seen = graph.node("And", seen, past)
    return graph.node("Where", seen, graph.number(0.0), graph.number(_HIDDEN))


def attention(graph: OnnxGraph, layer, name: str, x: str, bias: str, keys_of: str = "") -> str:
    """`MultiHeadAttention` to `x` itself, or to `keys_of`; kernels of the same input are one."""
    if keys_of:
        query = _heads(graph, [layer.query], f"{name}.query", x, layer)
        key_value = [layer.key, layer.value]
        key, value = _heads(graph, key_value, f"{name}.key_value", keys_of, layer)
    else:
        projections = [layer.query, layer.key, layer.value]
        query, key, value = _heads(graph, projections, f"{name}.query_key_value", x, layer)
    query = graph.node("Transpose", query, perm=[0, 2, 1, 3])
    key = graph.node("Transpose", key, perm=[0, 2, 3, 1])
    value = graph.node("Transpose", value, perm=[0, 2, 1, 3])
    scores = graph.node("Add", graph.node("MatMul", query, key), bias)
    context = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
    context = graph.node("Transpose", context, perm=[0, 2, 1, 3])
    width = layer.num_heads * layer.head_dim
    context = graph.node("Reshape", context, graph.ints(0, 0, width))
    output = layer.attention_output
    kernel = numbers(output.kernel).reshape(width, -1)
    return graph.linear(context, f"{name}.output", kernel, numbers(output.bias))


def _heads(graph: OnnxGraph, projections: Sequence, name: str, x: str, layer):
    """Project to (batch, sequence, heads, head_dim), once for each projection."""
    width = layer.num_heads * layer.head_dim
    kernels = [numbers(p.kernel).reshape(-1, width) for p in projections]
    biases = [numbers(p.bias).reshape(width) for p in projections]
    if projections[0] is layer.query:  # the query is scaled, instead of the scores
        scale = np.float32(layer.head_dim**-0.5)
        kernels[0], biases[0] = kernels[0] * scale, biases[0] * scale
    projected = graph.linear(x, name, np.concatenate(kernels, 1), np.concatenate(biases))
    count = len(projections)
    parts = [projected]
    if count > 1:
        parts = graph.node("Split", projected, axis=-1, num_outputs=count, outputs=count)
    shape = graph.ints(0, 0, layer.num_heads, layer.head_dim)
    parts = [graph.node("Reshape", part, shape) for part in parts]
    return parts if count > 1 else parts[0]


def transformer_layer(
    graph: OnnxGraph, layer, name: str, x: str, bias: str, encoder: tuple[str, str] | None
) -> str:
    """`MegatronBertLayer`; `encoder` is the hidden states and the bias of cross-attention."""

    def residual(x: str, normed: str) -> str:
        return normed if layer.apply_residual_connection_post_layernorm else x

    normed = layer_norm(graph, layer.self_attention_layer_norm, f"{name}.self_attention_norm", x)
    attended = attention(graph, layer.self_attention, f"{name}.self_attention", normed, bias)
    x = graph.node("Add", residual(x, normed), attended)
    if encoder is not None:
        norm = layer.cross_attention_layer_norm
        normed = layer_norm(graph, norm, f"{name}.cross_attention_norm", x)
        states, encoder_bias = encoder
        attended = attention(
            graph, layer.cross_attention, f"{name}.cross_attention", normed, encoder_bias, states
        )
        x = graph.node("Add", residual(x, normed), attended)
    normed = layer_norm(graph, layer.feedforward_layer_norm, f"{name}.feedforward_norm", x)
    fed = dense(graph, layer.feedforward_intermediate_dense, f"{name}.intermediate", normed)
    fed = dense(graph, layer.feedforward_output_dense, f"{name}.feedforward_output", fed)
    return graph.node("Add", residual(x, normed), fed)


def masked_lm_head(graph: OnnxGraph, layer, states: str, mask_positions: str = "") -> str:
    """`MaskedLMHead`, at some positions (batch, masks) or at all."""
    if mask_positions:
        index = graph.node("Unsqueeze", graph.cast(mask_positions, "int64"), graph.ints(-1))
        states = graph.node("GatherND", states, index, batch_dims=1)
    hidden = dense(graph, layer.dense, "mlm_head.dense", states, exact=True)
    hidden = layer_norm(graph, layer.layer_norm, "mlm_head.norm", hidden)
    logits = graph.product_with_rows(hidden, "token_embedding")
    return graph.node("Add", logits, graph.weight("mlm_head.bias", numbers(layer.bias)))


def text_pooling(graph: OnnxGraph, layer, states: str, padding_mask: str) -> str:
    """`TextPooling`: (batch, sequence, hidden) to (batch, hidden)."""
    is_token = graph.node("Unsqueeze", graph.cast(padding_mask, "bool"), graph.ints(-1))
    as_float = graph.cast(is_token, "float32")
    over = graph.ints(1)
    if layer.pooling == "cls":
        pooled = graph.node("Gather", states, graph.number(0, "int64"), axis=1)
    elif layer.pooling == "mean":
        count = graph.node("ReduceSum", as_float, over, keepdims=0)
        total = graph.node("ReduceSum", graph.node("Mul", states, as_float), over, keepdims=0)
        pooled = graph.node("Div", total, graph.node("Max", count, graph.number(1.0)))
    else:
        tokens = graph.node("Where", is_token, states, graph.number(_HIDDEN))
        largest = graph.node("ReduceMax", tokens, over, keepdims=0)
        any_token = graph.cast(graph.node("ReduceMax", as_float, over, keepdims=0), "bool")
        pooled = graph.node("Where", any_token, largest, graph.number(0.0))
    if layer.normalize:
        length = graph.node("ReduceL2", pooled, graph.ints(-1), keepdims=1)
        length = graph.node("Max", length, graph.number(keras.config.epsilon()))
        pooled = graph.node("Div", pooled, length)
    return pooled


def flatten_choices(graph: OnnxGraph, ids: str) -> str:
    """`FlattenChoices`: (batch, choices, sequence) to (rows, sequence)."""
    shape = graph.node("Concat", graph.ints(-1), graph.sizes(ids, 2, 3), axis=0)
    return graph.node("Reshape", ids, shape)


def gather_choices(graph: OnnxGraph, scores: str, padding_mask: str) -> str:
    """`GatherChoices`: (rows, 1) to (batch, choices)."""
    is_token = graph.cast(graph.cast(padding_mask, "bool"), "float32")
    is_there = graph.node("ReduceMax", is_token, graph.ints(2), keepdims=0)
    scores = graph.node("Reshape", scores, graph.sizes(padding_mask, 0, 2))
    return graph.node("Where", graph.cast(is_there, "bool"), scores, graph.number(ABSENT))
