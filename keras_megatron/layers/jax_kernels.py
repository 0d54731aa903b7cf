"""What keeps XLA on a CPU from computing the same thing many times."""

import jax
import jax.numpy as jnp
import keras


def apart(x):
    """Return a residual stream, float (batch, sequence, hidden), as something computed once.

    A layer's input is the sum of what all layers before it gave, and its gradient that of all
    layers after it. XLA fuses sums into each of their readers and computes them anew there: in a
    training step of 12 layers most of the time. It does not do so with quotients; hence this one,
    by a 1 that it cannot know to be one.
    """
    if jax.default_backend() != "cpu" or keras.distribution.distribution() is not None:
        return x
    size = jnp.abs(jax.lax.stop_gradient(x[0, 0, 0]))
    one = jnp.exp(jnp.minimum(jnp.where(jnp.isnan(size), 0, size), 0))
    return x / one.astype(x.dtype)
