"""Gradient checkpointing: the same gradients, dropout included, for less memory."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from huggingface import SMALL, largest_difference, random_inputs
from models import as_numpy, encoder_inputs, randomize, small_backbone

TESTS = pathlib.Path(__file__).parent.parent


def gradients(backbone, inputs) -> list[np.ndarray]:
    """Return the gradients of the summed squares of the output, in training mode."""
    variables = backbone.trainable_variables

    def loss_of(outputs):
        return keras.ops.sum(keras.ops.square(outputs["sequence_output"]))

    if keras.backend.backend() == "jax":
        import jax

        def loss(values, others):
            outputs, _ = backbone.stateless_call(values, others, inputs, training=True)
            return loss_of(outputs)

        others = [v.value for v in backbone.non_trainable_variables]
        found = jax.jit(jax.grad(loss))([v.value for v in variables], others)
    elif keras.backend.backend() == "torch":
        backbone.zero_grad()
        loss_of(backbone(inputs, training=True)).backward()
        found = [v.value.detach() * 0 if v.value.grad is None else v.value.grad for v in variables]
    else:
        import tensorflow as tf

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                loss = loss_of(backbone(inputs, training=True))
            values = [v.value for v in variables]
            return tape.gradient(loss, values, unconnected_gradients="zero")

        found = step()
    return [as_numpy(keras.ops.convert_to_tensor(gradient)) for gradient in found]


def backbone_with(**arguments):
    keras.utils.set_random_seed(7)  # the same dropout seeds each time
    backbone = small_backbone(**arguments)
    randomize(backbone)
    return backbone


@pytest.mark.parametrize(
    ("rate", "dtype"), [(0.0, None), (0.3, None), (0.3, "mixed_bfloat16"), (0.3, "mixed_float16")]
)
def test_gradients_are_the_same(rate, dtype):
    inputs = encoder_inputs(random_inputs(SMALL["vocab_size"]))
    rates = {"dropout": rate, "attention_dropout": rate, "dtype": dtype}
    keras.utils.set_random_seed(3)
    kept = gradients(backbone_with(**rates), inputs)
    keras.utils.set_random_seed(3)
    recomputed = gradients(backbone_with(**rates, gradient_checkpointing=True), inputs)
    scale = max(np.abs(gradient).max() for gradient in kept)
    assert scale > 1
    for one, other in zip(kept, recomputed, strict=True):
        assert largest_difference(one, other) <= 1e-5 * scale


def test_another_seed_gives_other_gradients():
    """Negative control: the comparison above sees units that are dropped differently."""
    inputs = encoder_inputs(random_inputs(SMALL["vocab_size"]))
    first = gradients(backbone_with(dropout=0.3), inputs)
    backbone = backbone_with(dropout=0.3)
    backbone(inputs, training=True)  # moves the seeds on
    second = gradients(backbone, inputs)
    scale = max(np.abs(gradient).max() for gradient in first)
    assert max(map(largest_difference, first, second)) > 1e-3 * scale


def test_it_can_be_switched_later():
    backbone = small_backbone()
    assert not backbone.gradient_checkpointing
    backbone.gradient_checkpointing = True
    assert all(layer.gradient_checkpointing for layer in backbone.transformer_layers)
    assert backbone.get_config()["gradient_checkpointing"]


def kept_bytes(checkpointing: bool) -> int:
    """Return how much a training step keeps from the forward for the backward pass.

    Of JAX and PyTorch we ask it directly. (XLA on a CPU undoes the recomputation that it is told
    of, so that peak memory there shows nothing; on a GPU it does not.) TensorFlow's tape cannot be
    asked, so there it is by how much the peak memory of a process rises.
    """
    if keras.backend.backend() == "tensorflow":
        script = str(TESTS / "layers" / "training_memory.py")
        output = subprocess.run(
            [sys.executable, script, str(int(checkpointing))],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        ).stdout
        return int(output.split()[-1])
    backbone = small_backbone(num_layers=6, gradient_checkpointing=checkpointing)
    inputs = encoder_inputs(random_inputs(SMALL["vocab_size"], sequence=40))
    if keras.backend.backend() == "jax":
        import jax

        others = [v.value for v in backbone.non_trainable_variables]

        def backward(values):
            return jax.vjp(
                lambda v: backbone.stateless_call(v, others, inputs, training=True)[0], values
            )[1]

        values = [v.value for v in backbone.trainable_variables]
        kept = jax.tree.leaves(jax.eval_shape(backward, values))
        return sum(array.size * array.dtype.itemsize for array in kept)
    import torch

    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = backbone(inputs, training=True)  # alive, so that no address is used twice
    assert outputs
    return sum(kept.values())


def test_training_needs_less_memory():
    assert kept_bytes(True) < 0.6 * kept_bytes(False)
