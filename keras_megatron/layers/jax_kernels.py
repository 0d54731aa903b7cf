"""JAX's fused attention, and what keeps XLA on a CPU from computing the same thing many times."""

import jax
import jax.numpy as jnp
import keras
from keras import ops


def attend(query_BQNH, key_BKNH, value_BKNH, mask, dropout: float):
    """Attend as `torch_kernels.attend` does, by cuDNN's fused attention on GPUs.

    Returns:
        None with dropout: cuDNN's seed is part of the compiled program, each step would drop the
        same probabilities. And for float16 on a CPU, which JAX has no such product for.
    """
    is_float16_on_cpu = jax.default_backend() == "cpu" and query_BQNH.dtype == jnp.float16
    if dropout or is_float16_on_cpu:
        return None
    queries, keys = query_BQNH.shape[1], key_BKNH.shape[1]
    fused = None  # where it can be
    if jax.default_backend() == "gpu":
        if mask is not None:
            mask = jnp.broadcast_to(mask, (*mask.shape[:2], queries, keys))
        if queries % 2 or keys % 2:  # it has no gradient of odd lengths
            fused = False
    return ops.dot_product_attention(
        query_BQNH, key_BKNH, value_BKNH, mask=mask, flash_attention=fused
    )


def apart(x):
    """Return a residual stream, float (batch, sequence, hidden), as something computed once.

    A layer's input is the sum of what all layers before it gave, and its gradient that of all
    layers after it. XLA fuses sums into each of their readers and computes them anew there: in a
    training step of 12 layers most of the time. It does not do so with quotients; hence this one,
    by a 1 that it cannot know to be one.
    """
    if jax.default_backend() != "cpu" or keras.distribution.distribution() or 0 in x.shape:
        return x
    size = jnp.abs(jax.lax.stop_gradient(x[0, 0, 0]))
    one = jnp.exp(jnp.minimum(jnp.where(jnp.isnan(size), 0, size), 0))
    return x / one.astype(x.dtype)
