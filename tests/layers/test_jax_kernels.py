"""The residual stream on JAX: computed once, whatever the depth."""

import keras
import numpy as np
import pytest

from keras_megatron import MegatronBertBackbone

if keras.config.backend() != "jax":
    pytest.skip("of JAX", allow_module_level=True)

import jax
import jax.numpy as jnp

from keras_megatron.layers import jax_kernels


def additions(layers: int) -> float:
    """Count what a gradient computes, in a model that is wide only in its sequence."""
    backbone = MegatronBertBackbone(50, layers, 1, 8, 8, dropout=0.0, attention_dropout=0.0)
    ids = jnp.ones((1, 64), "int32")
    inputs = {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": ids}
    weights = [v.value for v in backbone.non_trainable_variables]

    def loss(trainable):
        outputs, _ = backbone.stateless_call(trainable, weights, inputs, training=True)
        return jnp.sum(outputs["sequence_output"] ** 2)

    trainable = [v.value for v in backbone.trainable_variables]
    compiled = jax.jit(jax.grad(loss)).lower(trainable).compile()
    return compiled.cost_analysis()["flops"]


def growth() -> float:
    """Return how much more the second 8 layers compute than the first."""
    none, some, more = (additions(layers) for layers in (1, 9, 17))
    return (more - some) / (some - none)


def test_the_backward_pass_grows_with_the_depth_only(monkeypatch):
    assert growth() < 1.1
    monkeypatch.setattr("keras_megatron.layers.transformer_layer.apart", lambda x: x)
    assert growth() > 1.2  # XLA adds up the same sums again


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_stay_as_they_are(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), dtype)
    gradient = jax.grad(lambda x: jnp.sum(jax_kernels.apart(x) * x))
    assert (jax_kernels.apart(x) == x).all()
    assert (gradient(x) == 2 * x).all()
    broken = x.at[0, 0, 0].set(jnp.nan)
    assert jnp.isnan(jax_kernels.apart(broken)).sum() == 1
    assert (jax_kernels.apart(x.at[0, 0, 0].set(-jnp.inf))[1] == x[1]).all()
