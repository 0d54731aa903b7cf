"""Compiled layers on PyTorch, next to transformers. They are for GPUs: here a CPU stands in."""

import shutil

import keras
import numpy as np
import pytest
import torch
from huggingface import SMALL, largest_difference, random_inputs, random_model, torch_inputs
from models import encoder_inputs, randomize, small_backbone

from keras_megatron import MegatronBertBackbone, MegatronBertTextClassifier

if keras.config.backend() != "torch":
    pytest.skip("of PyTorch", allow_module_level=True)
if not shutil.which("g++"):
    pytest.skip("PyTorch's compiler needs one of C++", allow_module_level=True)

from torch._dynamo.utils import counters

from keras_megatron.layers import torch_compiled

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LABELS = np.array([0, 2, 1, 1])
INPUTS = encoder_inputs(random_inputs(SMALL["vocab_size"]))


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(torch_compiled, "DEVICES", {"cpu"})
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture(scope="module")
def reference():
    return random_model("MegatronBertForSequenceClassification", num_labels=3, **NO_DROPOUT)


@pytest.fixture
def classifier(reference, tmp_path):
    reference.save_pretrained(tmp_path)
    return MegatronBertTextClassifier.from_preset(str(tmp_path), preprocessor=None)


def test_training_follows_transformers(reference, classifier):
    """Three layers are one graph, of which nothing is left out."""
    start = {name: weight.clone() for name, weight in reference.state_dict().items()}
    optimizer = torch.optim.SGD(reference.parameters(), 0.05)
    expected = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = reference(**torch_inputs(INPUTS), labels=torch.from_numpy(LABELS)).loss
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    reference.load_state_dict(start)

    weights = classifier.get_weights()

    def losses(rate):
        classifier.set_weights(weights)
        classifier.compile(keras.optimizers.SGD(rate), jit_compile=True)
        return [float(np.ravel(classifier.train_on_batch(INPUTS, LABELS))[0]) for _ in range(5)]

    np.testing.assert_allclose(losses(0.05), expected, atol=2e-5)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert largest_difference(losses(0.049), expected) > 2e-5  # negative control
    assert counters["stats"]["unique_graphs"] == 1


def test_packed_texts_get_what_each_would_alone(reference, classifier):
    classifier.compile(jit_compile=True)
    lengths = INPUTS["padding_mask"].sum(axis=1)
    with torch.no_grad():
        alone = [
            reference(**torch_inputs({name: x[i : i + 1, :n] for name, x in INPUTS.items()})).logits
            for i, n in enumerate(lengths)
        ]
    calls = []
    compiled = torch_compiled._compiled
    torch_compiled._compiled = lambda form: calls.append(form) or compiled(form)
    try:
        packed = classifier.logits(INPUTS)
    finally:
        torch_compiled._compiled = compiled
    assert len(calls) == SMALL["num_hidden_layers"]
    assert largest_difference(packed, torch.cat(alone)) < 2e-5
    assert largest_difference(packed[::-1], torch.cat(alone)) > 1e-2  # negative control


def layer_and_states(**arguments):
    backbone = small_backbone(num_layers=1, **arguments)
    randomize(backbone)
    layer = backbone.get_layer("transformer_layer_0")
    layer.is_compiled = True
    dtype = getattr(torch, layer.compute_dtype)
    states = torch.randn(2, 9, SMALL["hidden_size"], generator=torch.Generator().manual_seed(1))
    return layer, states.to(dtype)


def plain(layer, *args, **kwargs):
    layer.is_compiled = False
    try:
        return layer(*args, **kwargs)
    finally:
        layer.is_compiled = True


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        ({"apply_residual_connection_post_layernorm": True}, 1e-5),
        ({"activation": "gelu_approximate", "head_dim": 8}, 1e-5),
        ({"layer_norm_epsilon": 0.5}, 1e-5),
        ({"dtype": "mixed_bfloat16"}, 0.03),
    ],
    ids=["post-LayerNorm", "tanh and narrow heads", "epsilon", "mixed"],
)
def test_options(arguments, limit):
    layer, states = layer_and_states(**arguments)
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[:, ..., 3:] = False
    compiled = layer(states, attention_mask=mask)
    assert counters["stats"]["unique_graphs"] == 1
    assert compiled.dtype == states.dtype
    assert largest_difference(*both_float(compiled, plain(layer, states, mask))) < limit
    unmasked = plain(layer, states)
    assert largest_difference(*both_float(compiled, unmasked)) > limit  # negative control


def both_float(*tensors):
    return [tensor.detach().float().numpy() for tensor in tensors]


def test_gradients_with_lora_and_mixed_precision():
    layer, states = layer_and_states(dtype="mixed_bfloat16", dropout=0.0, attention_dropout=0.0)
    layer.self_attention.query.enable_lora(2)
    a, b = (v for v in layer.trainable_variables if "lora" in v.path)
    a.assign(keras.random.normal(a.shape, seed=1))
    b.assign(keras.random.normal(b.shape, seed=2))
    gradients = {}
    for form in (layer, lambda *args, **kwargs: plain(layer, *args, **kwargs)):
        layer.zero_grad()
        form(states, training=True).float().square().sum().backward()
        gradients[form] = [v.value.grad.clone() for v in layer.trainable_variables]
    compiled, expected = gradients.values()
    largest = max(expected, key=lambda gradient: gradient.abs().max())
    limit = 0.02 * float(largest.abs().max())
    assert counters["stats"]["unique_graphs"] == 1
    for ours, theirs in zip(compiled, expected, strict=True):
        assert ours.dtype == torch.float32  # as the weights
        assert largest_difference(ours, theirs) < limit
    assert largest_difference(largest, 1.1 * largest) > limit  # negative control


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_drops_the_same_backward(checkpointing):
    """The output is linear in the last bias but for dropout: its gradient says what was kept."""
    layer, states = layer_and_states(
        dropout=0.25, attention_dropout=0.25, gradient_checkpointing=checkpointing
    )
    dropped = layer(states, training=True)
    assert not torch.equal(dropped, layer(states, training=True))
    states = states.repeat(40, 1, 1)
    output = layer(states, training=True)
    with torch.no_grad():
        layer.feedforward_output_dense.bias.value.add_(1.0)
    weights = torch.randn(output.shape)
    (output * weights).sum().backward()
    bias = layer.feedforward_output_dense.bias.value
    # The same numbers once more, with another bias: where the output moved, it was kept.
    torch.manual_seed(3)
    first = layer(states, training=True).detach()
    with torch.no_grad():
        bias.add_(1.0)
    torch.manual_seed(3)
    bias.grad = None
    second = layer(states, training=True)
    (second * weights).sum().backward()
    moved = (second.detach() - first) > 0.5
    assert abs(float(moved.float().mean()) - 0.75) < 0.01
    np.testing.assert_allclose(
        bias.grad, (moved * weights / 0.75).sum(dim=(0, 1)), rtol=1e-3, atol=1e-3
    )


def test_what_is_not_compiled():
    layer, states = layer_and_states()
    seen = []
    hook = layer.self_attention.query.register_forward_hook(lambda *_: seen.append(1))
    layer(states)
    assert seen
    hook.remove()
    layer(states, output_attentions=True)
    layer.feedforward_intermediate_dense.activation = keras.activations.relu
    layer(states)
    torch_compiled.DEVICES = {"cuda"}
    layer.feedforward_intermediate_dense.activation = keras.activations.gelu
    layer(states)
    assert not counters["stats"]


def test_compile_says_which_layers():
    backbone = MegatronBertBackbone(50, 2, 2, 8, 16)
    classifier = MegatronBertTextClassifier(backbone, num_classes=2, preprocessor=None)
    layers = [backbone.get_layer(f"transformer_layer_{index}") for index in range(2)]
    assert not any(layer.is_compiled for layer in layers)
    classifier.compile(jit_compile=True)
    assert all(layer.is_compiled for layer in layers)
    assert not classifier.jit_compile  # Keras would compile whole steps
    classifier.compile()
    assert not any(layer.is_compiled for layer in layers)
