"""What loading a preset leaves out, and what it must not leave out."""

import keras
import numpy as np
import pytest
from models import small_backbone

from keras_megatron import (
    MegatronBertMaskedLM,
    MegatronBertPretrainer,
    MegatronBertTextClassifier,
)


def small_preset(folder):
    model = MegatronBertMaskedLM(small_backbone(), preprocessor=None)
    model.save_to_preset(str(folder))
    return model


def largest_difference(first, second):
    pairs = zip(first.weights, second.weights, strict=True)
    return max(float(np.abs(a.numpy() - b.numpy()).max()) for a, b in pairs)


@pytest.fixture
def draws(monkeypatch):
    """The shapes that random initializers are called for."""
    shapes, normal = [], keras.initializers.RandomNormal.__call__

    def watched(self, shape, dtype=None):
        shapes.append(tuple(shape))
        return normal(self, shape, dtype)

    monkeypatch.setattr(keras.initializers.RandomNormal, "__call__", watched)
    return shapes


def test_a_preset_is_loaded_without_random_numbers(tmp_path, draws):
    model = small_preset(tmp_path)
    assert draws  # by the model itself
    draws.clear()
    loaded = MegatronBertMaskedLM.from_preset(str(tmp_path), preprocessor=None)
    assert not draws
    assert largest_difference(loaded, model) == 0
    table = loaded.backbone.token_embedding.embeddings
    table.assign(keras.ops.ones(table.shape))
    again = MegatronBertMaskedLM.from_preset(str(tmp_path), preprocessor=None)
    assert largest_difference(again, model) == 0  # nothing is shared between models


def test_a_head_that_the_preset_lacks_is_random(tmp_path, draws):
    model = small_preset(tmp_path)
    draws.clear()
    classifier = MegatronBertTextClassifier.from_preset(
        str(tmp_path), num_classes=3, preprocessor=None
    )
    assert draws == [tuple(classifier.classifier.kernel.shape)]
    assert classifier.classifier.kernel.numpy().std() > 0.01
    assert largest_difference(classifier.backbone, model.backbone) == 0


def test_a_model_without_weights_is_random(tmp_path, draws):
    small_preset(tmp_path)
    draws.clear()
    model = MegatronBertMaskedLM.from_preset(str(tmp_path), preprocessor=None, load_weights=False)
    assert draws
    kernels = [weight for weight in model.weights if weight.path.endswith("/kernel")]
    assert min(kernel.numpy().std() for kernel in kernels) > 0.001


def test_a_head_of_another_task_is_loaded_without_random_numbers(tmp_path, draws):
    pretrainer = MegatronBertPretrainer(small_backbone(), preprocessor=None)
    pretrainer.save_to_preset(str(tmp_path))
    draws.clear()
    loaded = MegatronBertMaskedLM.from_preset(str(tmp_path), preprocessor=None)
    assert not draws
    assert largest_difference(loaded.mlm_head, pretrainer.mlm_head) == 0
    MegatronBertMaskedLM(small_backbone()).save_to_preset(str(tmp_path / "masked"))
    draws.clear()
    with pytest.warns(UserWarning, match="has no binary_head"):
        other = MegatronBertPretrainer.from_preset(str(tmp_path / "masked"), preprocessor=None)
    assert draws  # negative control: the preset lacks one of the two heads
    assert other.binary_head.kernel.numpy().std() > 0.001
