"""PyTorch's products and attention, next to plain float64."""

import keras
import pytest
import torch

from keras_megatron import MegatronBertBackbone, MegatronBertTextClassifier
from keras_megatron.tasks import packed_rows

if keras.config.backend() != "torch":
    pytest.skip("of PyTorch", allow_module_level=True)

from keras_megatron.layers import torch_kernels
from keras_megatron.layers.common import gelu_approximate

LIMITS = {"float32": 2e-5, "bfloat16": 0.05}


def numbers(*shape, dtype="float32", seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(
        getattr(torch, dtype)
    )


def largest(first, second):
    return float((first.detach().double() - second.detach().double()).abs().max())


def dense(dtype, activation):
    layer = torch_kernels.Dense(24, activation=activation, dtype=dtype)
    layer.build((None, None, 16))
    kernel, bias = numbers(16, 24, seed=1) / 4, numbers(24, seed=2)
    layer.kernel.assign(kernel)
    layer.bias.assign(bias)
    kernel, bias = (x.value.double().detach() for x in (layer.kernel, layer.bias))
    return layer, lambda x: x.double() @ kernel + bias


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (None, lambda x: x),
        ("gelu", torch.nn.functional.gelu),
        (gelu_approximate, lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
        ("relu", torch.relu),
    ],
)
def test_dense(dtype, activation, expected):
    layer, product = dense(dtype, activation)
    x = numbers(2, 5, 16, dtype=dtype)
    with torch.no_grad():
        assert largest(layer(x), expected(product(x))) < LIMITS[dtype]
    assert largest(layer(x), expected(product(x))) < LIMITS[dtype]  # with a gradient to come
    assert largest(layer(x), expected(product(x) + 0.1)) > LIMITS[dtype]
    assert layer(x[:0]).shape == (0, 5, 24)


@pytest.mark.parametrize(
    ("equation", "shape", "kernel", "bias"),
    [
        ("abc,cde->abde", (2, 5, 16), (16, 4, 6), "de"),
        ("abde,dec->abc", (2, 5, 4, 6), (4, 6, 16), "c"),
    ],
)
def test_einsum_dense_and_its_gradients(equation, shape, kernel, bias):
    output = {"de": (None, 4, 6), "c": (None, 16)}[bias]
    layer = torch_kernels.EinsumDense(equation, output_shape=output, bias_axes=bias)
    layer.build(shape)
    layer.kernel.assign(numbers(*kernel, seed=1))
    layer.bias.assign(numbers(*layer.bias.shape, seed=2))
    x = numbers(*shape).requires_grad_()
    own = [x, layer.kernel.value, layer.bias.value]
    exact = [tensor.detach().double().requires_grad_() for tensor in own]
    (layer(x) ** 2).sum().backward()
    ((torch.einsum(equation, *exact[:2]) + exact[2]) ** 2).sum().backward()
    for tensor, reference in zip(own, exact, strict=True):
        scale = float(reference.grad.abs().max())
        assert largest(tensor.grad, reference.grad) < 2e-5 * scale
        assert largest(tensor.grad, reference.grad * 1.001) > 2e-5 * scale


@pytest.mark.parametrize("dtype", LIMITS)
def test_words_are_scored_and_their_table_gets_gradients(dtype, monkeypatch):
    embedding = keras.layers.ReversibleEmbedding(40, 16, dtype=dtype)
    embedding.build()
    embedding.embeddings.assign(numbers(40, 16, seed=1) / 4)
    monkeypatch.setattr(type(embedding), "call", None)  # nothing of Keras's is used
    x = numbers(2, 5, 16, dtype=dtype).requires_grad_()
    own = [x, embedding.embeddings.value]
    exact = [tensor.detach().double().requires_grad_() for tensor in own]
    with torch.no_grad():
        assert (
            largest(torch_kernels.score_words(embedding, x), exact[0] @ exact[1].T)
            < (LIMITS[dtype])
        )
    found, reference = torch_kernels.score_words(embedding, x), exact[0] @ exact[1].T
    assert largest(found, reference) < LIMITS[dtype] < largest(found, reference * 1.1)
    (found**2).sum().backward()
    (reference**2).sum().backward()
    for tensor, of in zip(own, exact, strict=True):
        scale = float(of.grad.abs().max())
        assert largest(tensor.grad, of.grad) < LIMITS[dtype] * scale
        assert largest(tensor.grad, of.grad * 1.1) > LIMITS[dtype] * scale


@pytest.mark.parametrize("of", ["cap", "quantized", "untied", "another dtype"])
def test_other_tables_score_words_as_keras_does(of):
    embedding = keras.layers.ReversibleEmbedding(
        40,
        16,
        tie_weights=of != "untied",
        logit_soft_cap=2.0 if of == "cap" else None,
        reverse_dtype="bfloat16" if of == "another dtype" else None,
    )
    embedding.build()
    if of == "quantized":
        embedding.quantize("int8")
    x = numbers(2, 5, 16) * 100
    found = torch_kernels.score_words(embedding, x)
    assert found.dtype == (torch.bfloat16 if of == "another dtype" else torch.float32)
    assert largest(found, embedding(x, reverse=True)) == 0


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("keys", [7, 300])
def test_attention(dtype, keys):
    query = numbers(2, 9, 4, 8, dtype=dtype)
    key, value = (numbers(2, keys, 4, 8, dtype=dtype, seed=seed) for seed in (1, 2))
    mask = numbers(2, 1, 9, keys, seed=3) > 0
    mask[0, 0, 0] = False  # a query with nothing to attend to
    scores = torch.einsum("bqnh,bknh->bnqk", query.double(), key.double()) / 8**0.5
    probabilities = scores.masked_fill(~mask, -1e30).softmax(-1)
    exact = torch.einsum("bnqk,bknh->bqnh", probabilities, value.double())
    found = torch_kernels.attend(query, key, value, mask, dropout=0.0)
    assert largest(found, exact) < LIMITS[dtype]
    assert largest(torch_kernels.attend(query, key, value, None, 0.0), exact) > LIMITS[dtype]
    assert torch_kernels.attend(query, key, value, mask, dropout=0.1) is None  # on a CPU


@pytest.mark.parametrize("dtype", LIMITS)
def test_layer_norm(dtype):
    layer = torch_kernels.LayerNormalization(epsilon=1e-5, dtype=dtype)
    layer.build((None, None, 16))
    layer.gamma.assign(numbers(16, seed=1))
    layer.beta.assign(numbers(16, seed=2))
    x = numbers(2, 5, 16, dtype=dtype) * 3 + 1
    exact = torch.nn.functional.layer_norm(
        x.double(), (16,), layer.gamma.value.double(), layer.beta.value.double(), 1e-5
    )
    assert layer(x).dtype == x.dtype
    assert largest(layer(x), exact) < LIMITS[dtype]
    assert largest(layer(x + torch.arange(16)), exact) > LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS)
def test_frozen_weights_give_the_same_and_are_forgotten(dtype):
    layer, _ = dense(dtype, None)
    x = numbers(2, 5, 16, dtype=dtype)
    with torch.no_grad():
        expected = layer(x)
        with torch_kernels.frozen_weights():
            assert largest(layer(x), expected) == 0
            layer.kernel.assign(layer.kernel.value * 2)
            assert largest(layer(x), expected) == 0  # of the kernel that was frozen
        assert largest(layer(x), expected) > LIMITS[dtype]


def test_many_texts_are_predicted_as_few_are(monkeypatch):
    backbone = MegatronBertBackbone(50, 2, 2, 8, 16)
    task = MegatronBertTextClassifier(backbone, num_classes=3)
    ids = numbers(40, 6).argsort(-1).int().numpy() + 4
    inputs = {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": ids * 0 + 1}
    frozen, original = [], torch_kernels._reordered

    def watched(layer, weights, rows):
        frozen.append(torch_kernels._orders.get() is not None)
        return original(layer, weights, rows)

    monkeypatch.setattr(torch_kernels, "_reordered", watched)
    few = task.logits(inputs)
    assert not any(frozen)
    monkeypatch.setattr(packed_rows, "_MANY_TOKENS", 100)
    frozen.clear()
    assert abs(task.logits(inputs) - few).max() == 0
    assert all(frozen)
    assert frozen
    backbone.get_layer("transformer_layer_1").feedforward_output_dense.kernel.assign(numbers(16, 8))
    assert abs(task.logits(inputs) - few).max() > 1e-3


def test_hooks_of_inner_layers_are_called():
    backbone = MegatronBertBackbone(50, 1, 2, 8, 16)
    seen = []
    projection = backbone.get_layer("transformer_layer_0").self_attention.query
    projection.register_forward_hook(lambda *_: seen.append(1))
    ids = keras.ops.ones((1, 4), "int32")
    inputs = {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": ids}
    seen.clear()
    backbone(inputs)
    assert seen
