"""Fine-tuning follows transformers' losses; tools/training_parity.py draws the figure in docs/."""

import importlib.util
import pathlib

import numpy as np
import pytest

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
