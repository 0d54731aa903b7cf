"""Dropout by 16 random bits an element: its rate, its scale, its gradient, its seeds."""

import keras
import numpy as np
import pytest
from models import as_numpy

from keras_megatron.layers import kernels

pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="of PyTorch")
COUNT = 1_000_003  # elements, no multiple of the four that share a random number


def dropped(rate, **arguments):
    keras.utils.set_random_seed(1)
    layer = kernels.Dropout(rate, **arguments)
    x = keras.ops.ones((COUNT,), dtype=layer.compute_dtype)
    return as_numpy(keras.ops.cast(layer(x, training=True), "float32"))


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9, 0.99])
def test_rate_and_mean(rate):
    found = dropped(rate)
    deviation = np.sqrt(rate * (1 - rate) / COUNT)
    assert abs((found == 0).mean() - rate) < 5 * deviation + 1e-3 * rate
    assert len(set(found[found != 0])) == 1
    assert found.max() == pytest.approx(1 / (1 - rate), rel=2e-3)
    assert abs(found.mean() - 1) < 6 * deviation / (1 - rate)


def test_neighbours_are_independent():
    kept = (dropped(0.5) != 0).astype("float64") - 0.5
    for distance in (1, 2, 3, 4, 8, 1024):
        correlation = 4 * (kept[distance:] * kept[:-distance]).mean()
        assert abs(correlation) < 5 / np.sqrt(COUNT)


def test_seed_decides():
    np.testing.assert_array_equal(dropped(0.1), dropped(0.1))
    keras.utils.set_random_seed(2)
    layer = kernels.Dropout(0.1)
    x = keras.ops.ones((COUNT,))
    first, second = (as_numpy(layer(x, training=True)) for _ in range(2))
    assert 0.1 < (first != second).mean() < 0.25


def test_gradient_is_that_of_what_was_kept():
    import torch

    x = torch.full((64, 512), 3.0, requires_grad=True)
    output = kernels.Dropout(0.25)(x, training=True)
    output.sum().backward()
    np.testing.assert_allclose(as_numpy(output), 3 * as_numpy(x.grad), rtol=1e-6)


@pytest.mark.parametrize("arguments", [
    {"rate": 1e-6},  # rounded away
    {"rate": 0.2, "seed": 3},
    {"rate": 0.2, "noise_shape": (512, 1)},
])  # fmt: skip
def test_what_is_left_to_keras(arguments, monkeypatch):
    calls = []
    monkeypatch.setattr(
        keras.layers.Dropout, "call", lambda self, x, training: calls.append(x) or x
    )
    x = keras.ops.ones((512, 512))
    kernels.Dropout(**arguments)(x, training=True)
    kernels.Dropout(0.2)(x, training=False)
    assert len(calls) == 2
    kernels.Dropout(0.2)(x, training=True)
    assert len(calls) == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_is_not_biased(dtype):
    keras.utils.set_random_seed(1)
    x = keras.random.uniform((COUNT,), 0.5, 1.5, dtype=dtype)
    output = kernels.Dropout(0.1, dtype=dtype)(x, training=True)
    assert keras.backend.standardize_dtype(output.dtype) == dtype
    x, output = (as_numpy(keras.ops.cast(tensor, "float32")) for tensor in (x, output))
    ratio = output[output != 0].mean() / x[output != 0].mean()
    assert ratio == pytest.approx(1 / 0.9, rel=1e-4)  # its bfloat16 is 1.6e-3 off
