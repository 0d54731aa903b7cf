"""A transformer layer as one function of tensors, which PyTorch compiles once for all layers.

On a GPU an operation takes PyTorch longer to ask for than the device to compute. What Keras does
around each call cannot be compiled; a function of tensors can.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import torch
from keras.src.backend.common.variables import AutocastScope
from torch.nn import functional

from keras_megatron.layers.torch_kernels import GELU, fused_attention, has_plain_call, value_of

DEVICES = {"cuda"}  # on a CPU oneDNN's products, which cannot be compiled, are worth more


class _Form(NamedTuple):
    """What a function is compiled for, beside shapes and types."""

    dropouts: tuple[float, float, float]  # on attention's probabilities, and on both blocks
    epsilons: tuple[float, float]
    gelu: str
    adds_normed: bool


def transform(layer, x, mask, training: bool | None):
    """Return what a `MegatronBertLayer` makes of x (batch, sequence, hidden), compiled.

    Args:
        layer: the layer, without cross-attention.
        x: float (batch, sequence, hidden).
        mask: bool, broadcast to (batch, heads, query, key), or None.
        training: whether to drop out.

    Returns:
        A tensor as x is; or None where the layer, or the device, is not one to compile for.
    """
    if type(x) is not torch.Tensor or x.device.type not in DEVICES:
        return None
    if not _can_be_compiled(layer):
        return None
    form = _Form(
        tuple(part.rate if training else 0.0 for part in _dropouts(layer)),
        tuple(part.epsilon for part in _norms(layer)),
        GELU[layer.feedforward_intermediate_dense.activation],
        layer.apply_residual_connection_post_layernorm,
    )
    with AutocastScope(None):  # weights become those of the computation's type in what is compiled
        weights = [weight for part in _weighted(layer) for weight in _weights(part)]
    return _compiled(form)(x, mask, *weights)


def _can_be_compiled(layer) -> bool:
    parts = [layer.self_attention, *_dropouts(layer), *_weighted(layer)]
    return (
        not layer.has_cross_attention
        and layer.feedforward_intermediate_dense.activation in GELU
        and {part.compute_dtype for part in parts} == {layer.compute_dtype}
        and all(map(has_plain_call, parts))
        and not keras.distribution.distribution()
    )


def _norms(layer) -> list:
    return [layer.self_attention_layer_norm, layer.feedforward_layer_norm]


def _dropouts(layer) -> list:
    return [layer.self_attention.dropout, layer.self_attention_dropout, layer.feedforward_dropout]


def _weighted(layer) -> list:
    attention = layer.self_attention
    dense = [layer.feedforward_intermediate_dense, layer.feedforward_output_dense]
    projections = [attention.query, attention.key, attention.value, attention.attention_output]
    return [*_norms(layer), *projections, *dense]


def _weights(part) -> Iterator[torch.Tensor]:
    names = ("gamma", "beta") if hasattr(part, "gamma") else ("kernel", "bias")
    for name in names:
        yield value_of(getattr(part, name))


@functools.cache
def _compiled(form: _Form) -> Callable:
    def function(x, mask, *weights):
        weights = [weight.to(x.dtype) for weight in weights]
        return _transform(form, x, mask, *zip(weights[::2], weights[1::2], strict=True))

    return torch.compile(function)


def _transform(form, x, mask, norm, fed_norm, query, key, value, output, widened, narrowed):
    """Compute `MegatronBertLayer.call` of weights, each a kernel or gamma, and a bias or beta."""
    on_probabilities, on_attended, on_fed = form.dropouts
    attended_epsilon, fed_epsilon = form.epsilons
    normed = functional.layer_norm(x, x.shape[-1:], *norm, attended_epsilon)
    heads = [_project(normed, *weights) for weights in (query, key, value)]
    context = fused_attention(*heads, mask, on_probabilities).flatten(2)
    attended = _project(context, output[0].flatten(0, 1), output[1])
    x = (normed if form.adds_normed else x) + functional.dropout(attended, on_attended)
    normed = functional.layer_norm(x, x.shape[-1:], *fed_norm, fed_epsilon)
    fed = functional.gelu(_project(normed, *widened), approximate=form.gelu)
    fed = _project(fed, *narrowed)
    return (normed if form.adds_normed else x) + functional.dropout(fed, on_fed)


def _project(x, kernel, bias):
    """Return (batch, sequence, outputs...); the kernel is (inputs, outputs...)."""
    flat = torch.addmm(bias.flatten(), x.flatten(0, 1), kernel.flatten(1))
    return flat.reshape(*x.shape[:2], *kernel.shape[1:])
