"""Fine-tuning follows transformers' losses; tools/training_parity.py draws the figure in docs/."""

import importlib.util
import pathlib

import keras
import numpy as np
import pytest
import torch
from huggingface import SMALL, random_inputs, random_model, torch_inputs
from models import encoder_inputs

from keras_megatron import MegatronBertTextClassifier
from keras_megatron.packing import PackedRows

TOOL = pathlib.Path(__file__).parent.parent / "tools" / "training_parity.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("training_parity", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parity
def test_thirty_steps_of_adamw(tool, tmp_path, parity):
    folder = str(tmp_path / "model")
    tool.write_model(folder)
    expected = tool.transformers_losses(folder)
    assert len(expected) == 30
    parity("losses of 30 training steps", tool.keras_losses(folder), expected, 1e-3)
    wrong = tool.keras_losses(folder, weight_decay=5.0)  # negative control
    assert np.abs(np.array(wrong) - expected).max() > 1e-3


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_adam_as_keras_has_it(tmp_path, packed):
    """Each optimizer sees whole gradients: an id that occurs twice counts as one."""
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    reference = random_model("MegatronBertForSequenceClassification", num_labels=3, **no_dropout)
    reference.save_pretrained(tmp_path)
    inputs, labels = encoder_inputs(random_inputs(SMALL["vocab_size"])), np.array([0, 2, 1, 1])
    optimizer = torch.optim.Adam(reference.parameters(), 1e-3)
    expected = []
    for step in range(1, 7):
        # PyTorch adds it after the correction of the second moment's bias, Keras before.
        optimizer.param_groups[0]["eps"] = 1e-7 / (1 - 0.999**step) ** 0.5
        optimizer.zero_grad()
        loss = reference(**torch_inputs(inputs), labels=torch.from_numpy(labels)).loss
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    if packed:
        inputs = PackedRows.plan(inputs["padding_mask"].sum(axis=1), 40).inputs(inputs)

    def losses(rate):
        model = MegatronBertTextClassifier.from_preset(str(tmp_path), preprocessor=None)
        model.compile(keras.optimizers.Adam(rate))
        return [float(np.ravel(model.train_on_batch(inputs, labels))[0]) for _ in range(6)]

    np.testing.assert_allclose(losses(1e-3), expected, atol=2e-5)
    assert np.abs(np.array(losses(0.99e-3)) - expected).max() > 2e-5  # negative control
