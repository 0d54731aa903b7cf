"""Layers and models by their configurations: cloned, or as parts of other models."""

import keras
import numpy as np
import pytest
from models import as_numpy, randomize, small_backbone

from keras_megatron import MegatronBertMaskedLM, MegatronBertTextClassifier


def inputs_of(model):
    ids = {name: np.zeros((2, 6), "int32") for name in ("token_ids", "segment_ids")}
    return {
        **ids,
        "token_ids": ids["token_ids"] + np.arange(6),
        "padding_mask": ids["token_ids"] + 1,
    }


def test_every_layer_is_made_again_from_its_configuration():
    masked_lm = MegatronBertMaskedLM(small_backbone(), preprocessor=None)
    layers = [*masked_lm.backbone.layers, *masked_lm.layers]
    assert len(layers) > 6
    for layer in layers:
        if isinstance(layer, keras.layers.InputLayer) or layer is masked_lm.backbone:
            continue
        again = keras.layers.deserialize(keras.layers.serialize(layer))
        assert type(again) is type(layer)


@pytest.mark.parametrize("make", [
    lambda: small_backbone(),
    lambda: MegatronBertTextClassifier(small_backbone(), num_classes=3, preprocessor=None),
])  # fmt: skip
def test_a_clone_has_the_same_outputs(make):
    model = make()
    randomize(model)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    expected, found = as_numpy(model(inputs_of(model))), as_numpy(clone(inputs_of(model)))
    for one, other in zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_model_of_your_own_is_saved_and_loaded(tmp_path):
    backbone = small_backbone()
    head = keras.layers.Dense(2)
    own = keras.Model(backbone.input, head(backbone(backbone.input)["pooled_output"]))
    own.save(tmp_path / "own.keras")
    loaded = keras.saving.load_model(tmp_path / "own.keras")
    np.testing.assert_allclose(
        as_numpy(loaded(inputs_of(own))), as_numpy(own(inputs_of(own))), atol=1e-6
    )
