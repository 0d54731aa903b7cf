"""PyTorch's fastest products and attention for what the layers compute.

Only plain tensors are computed here; what is sharded or traced goes Keras's way.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import keras
import torch
from torch.nn import functional

from keras_megatron.layers.common import gelu_approximate

# On some CPUs the BLAS that PyTorch multiplies float32 by has half of oneDNN's speed.
_ONEDNN_TYPES = (torch.float32, torch.bfloat16)
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)
_DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}
_FEW_KEYS = 256
_orders = ContextVar("orders", default=None)  # while weights are frozen, those in another order
# PyTorch's and oneDNN's names of the approximation; oneDNN computes GELU with the product.
GELU = {keras.activations.gelu: "none", gelu_approximate: "tanh"}


@keras.saving.register_keras_serializable(package="keras_megatron")
class Dense(keras.layers.Dense):
    """`keras.layers.Dense` in one operation of PyTorch: product, bias and, if it can be, GELU."""

    def call(self, inputs, training=None):
        """Return (..., units) of (..., width)."""
        return _project(self, inputs, super().call)

    def quantize(self, mode=None, type_check=True, config=None):
        """Quantize; see `keras.Layer.quantize`, which leaves classes that it does not know."""
        super().quantize(mode, type_check=False, config=config)


@keras.saving.register_keras_serializable(package="keras_megatron")
class EinsumDense(keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` as one product, for a kernel of (inputs..., outputs...).

    The bias has to have all axes of the outputs.
    """

    def call(self, inputs, training=None):
        """Return (batch, sequence, outputs...) of (batch, sequence, inputs...)."""
        return _project(self, inputs, super().call)

    def quantize(self, mode=None, type_check=True, config=None):
        """Quantize; see `keras.Layer.quantize`, which leaves classes that it does not know."""
        super().quantize(mode, type_check=False, config=config)


@keras.saving.register_keras_serializable(package="keras_megatron")
class LayerNormalization(keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` over the last axis, without a copy in float32."""

    def call(self, inputs):
        """Return an array of the shape of `inputs`."""
        gamma, beta = value_of(self.gamma), value_of(self.beta)
        if not _are_plain(inputs, gamma, beta) or not inputs.dtype == gamma.dtype == beta.dtype:
            return super().call(inputs)
        return functional.layer_norm(inputs, gamma.shape, gamma, beta, self.epsilon)


def score_words(embedding: keras.layers.ReversibleEmbedding, x):
    """Return the products of x (..., width) with all words of a table that is tied to the output.

    What the embedding would compute in reverse; its own product does not go to oneDNN.
    """
    table = value_of(embedding.embeddings)
    is_plain = embedding.tie_weights and embedding.logit_soft_cap is None
    is_plain &= embedding.reverse_dtype is None and embedding.quantization_mode is None
    if not is_plain or not _are_plain(x, table) or not _can_use_onednn(x, table):
        return embedding(x, reverse=True)
    rows = x.reshape(-1, x.shape[-1])
    multiply = _Linear.apply if _needs_gradient(x, table) else _product
    return multiply(rows, table.t(), None).reshape(*x.shape[:-1], len(table))


def attend(query_BQNH, key_BKNH, value_BKNH, mask, dropout: float):
    """Return softmax(query key / sqrt(dim)) value without keeping the probabilities.

    Args:
        query_BQNH: float (batch, query, heads, dim).
        key_BKNH: float (batch, key, heads, dim).
        value_BKNH: float (batch, key, heads, dim).
        mask: bool, broadcast to (batch, heads, query, key), or None.
        dropout: rate of the dropout on the probabilities.

    Returns:
        float (batch, query, heads, dim), or None where PyTorch has no faster way.
    """
    if not _are_plain(query_BQNH, key_BKNH, value_BKNH):
        return None
    if dropout and not query_BQNH.is_cuda:
        return None
    tensors = query_BQNH, key_BKNH, value_BKNH
    if _is_short_bfloat16(key_BKNH) and not _needs_gradient(*tensors):
        return _attend_to_few(*tensors, mask)
    return fused_attention(*tensors, mask, dropout)


def fused_attention(query_BQNH, key_BKNH, value_BKNH, mask, dropout: float):
    """Attend by PyTorch's own kernel; see `attend`."""
    tensors = [x.transpose(1, 2) for x in (query_BQNH, key_BKNH, value_BKNH)]
    context_BNQH = functional.scaled_dot_product_attention(
        *tensors, attn_mask=_added(mask, query_BQNH.dtype), dropout_p=dropout
    )
    return context_BNQH.transpose(1, 2)


def _added(mask, dtype: torch.dtype):
    """Return what is added to scores; finite, so that a row of hidden keys is no NaN."""
    if mask is None:
        return None
    hidden = torch.finfo(dtype).min / 2
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, hidden)


def run(layer: keras.layers.Layer, x, *args, **kwargs):
    """Call a layer within another's `call`, without what Keras does around each call if it can be.

    Keras checks and converts what was checked and converted for the layer around it: 0.2 ms that
    PyTorch, which runs operation by operation, spends on each call.
    """
    is_plain = type(x) is torch.Tensor and has_plain_call(layer)
    # Keras casts what comes from a layer of another precision.
    is_plain = is_plain and (not x.is_floating_point() or _DTYPES[layer.compute_dtype] is x.dtype)
    if not is_plain or keras.distribution.distribution() is not None:
        return layer(x, *args, **kwargs)
    return layer.call(x, *args, **kwargs)


def has_plain_call(layer: keras.layers.Layer) -> bool:
    """Say whether nothing but the layer's `call` takes part in a call of it."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
    return layer.built and not hooks and layer.quantization_mode is None


def _is_short_bfloat16(key_BKNH) -> bool:
    """Say whether blocks of PyTorch's fused attention on a CPU are not worth their overhead."""
    is_cpu = key_BKNH.device.type == "cpu"
    return is_cpu and key_BKNH.dtype == torch.bfloat16 and key_BKNH.shape[1] <= _FEW_KEYS


def _attend_to_few(query_BQNH, key_BKNH, value_BKNH, mask):
    query_BNQH, key_BNKH, value_BNKH = (
        x.transpose(1, 2) for x in (query_BQNH, key_BKNH, value_BKNH)
    )
    scores_BNQK = query_BNQH * query_BNQH.shape[-1] ** -0.5 @ key_BNKH.transpose(2, 3)
    if mask is not None:
        scores_BNQK += _added(mask, query_BNQH.dtype)
    return (functional.softmax(scores_BNQK, -1) @ value_BNKH).transpose(1, 2)


def _project(layer, inputs, otherwise: Callable):
    kernel, bias = value_of(layer.kernel), value_of(layer.bias)
    if not _are_plain(inputs, kernel, bias):
        return otherwise(inputs)
    summed = kernel.ndim - bias.ndim
    leading, width = inputs.shape[: inputs.ndim - summed], math.prod(kernel.shape[:summed])
    x, weights, bias = inputs.reshape(-1, width), kernel.reshape(width, -1), bias.reshape(-1)
    activation = layer.activation
    if not _can_use_onednn(x, weights):
        outputs = torch.addmm(bias, x, weights)
    elif _needs_gradient(x, weights, bias):
        outputs = _Linear.apply(x, weights, bias)
    else:
        weights = _reordered(layer, weights.t(), len(x))
        name, algorithm = ("gelu", GELU[activation]) if activation in GELU else ("none", "")
        outputs = torch.ops.mkldnn._linear_pointwise(x, weights, bias, name, [], algorithm)
        activation = None if activation in GELU else activation
    outputs = outputs.reshape(*leading, *kernel.shape[summed:])
    return outputs if activation is None else activation(outputs)


def value_of(weight) -> torch.Tensor:
    """Return the tensor of a variable, or of a kernel with LoRA, in the type of computation."""
    return weight.value if isinstance(weight, keras.Variable) else weight


def _needs_gradient(*tensors) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _are_plain(*tensors) -> bool:
    return all(type(x) in (torch.Tensor, torch.nn.Parameter) for x in tensors)


def _can_use_onednn(x, weights) -> bool:
    if torch.compiler.is_compiling():  # its compiler takes this product in its own way only
        return False
    is_known = x.dtype in _ONEDNN_TYPES and x.dtype == weights.dtype
    return _HAS_ONEDNN and x.device.type == "cpu" and is_known and x.numel() > 0


@contextlib.contextmanager
def frozen_weights() -> Iterator[None]:
    """Keep kernels once more in oneDNN's own order, as long as nothing changes them.

    Else oneDNN brings them into it at each product, a tenth of its time.
    """
    token = _orders.set({})
    try:
        yield
    finally:
        _orders.reset(token)


def _reordered(layer, weights_OI, rows: int):
    """Return weights (out, in), in the order for so many rows if weights are frozen."""
    known = _orders.get()
    if known is None:
        return weights_OI
    key = id(layer), weights_OI.dtype
    if key not in known:
        known[key] = torch.ops.mkldnn._reorder_linear_weight(weights_OI, rows)
    return known[key]


def _product(x, weights, bias=None):
    """Return x (rows, in) times weights (in, out)."""
    return torch.ops.mkldnn._linear_pointwise(x, weights.t(), bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """A product with a bias by oneDNN, backward too."""

    @staticmethod
    def forward(ctx, x, weights, bias):
        ctx.save_for_backward(x, weights)
        return _product(x, weights, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, weights = ctx.saved_tensors
        of_x, of_weights, of_bias = ctx.needs_input_grad
        return (
            _product(gradient, weights.t()) if of_x else None,
            _product(x.t(), gradient) if of_weights else None,
            gradient.sum(0) if of_bias else None,
        )
