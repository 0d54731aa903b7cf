"""Presets whose table of words is loaded with more rows, that devices can share evenly."""

import keras
import numpy as np
import pytest
from huggingface import SMALL, random_model
from models import randomize, small_backbone

from keras_megatron import MegatronBertBackbone, MegatronBertMaskedLM, MegatronBertPretrainer

STORED = SMALL["vocab_size"]
ROWS = STORED + 7
X = {
    "token_ids": np.array([[2, 5, 9, 3], [2, 7, 3, 0]]),
    "segment_ids": np.zeros((2, 4), "int32"),
    "padding_mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]]),
    "mask_positions": np.array([[1], [1]]),
}
Y, WEIGHT = np.array([[6], [8]]), np.ones((2, 1), "float32")


@pytest.fixture
def keras_preset(tmp_path) -> tuple[keras.Model, str]:
    """A pretrainer, and the folder where it is saved as a preset."""
    model = MegatronBertPretrainer(small_backbone(dropout=0.0), preprocessor=None)
    randomize(model)
    model.save_to_preset(str(tmp_path / "preset"))
    return model, str(tmp_path / "preset")


@pytest.fixture
def hugging_face_folder(tmp_path) -> str:
    """A folder that transformers saved."""
    random_model("MegatronBertForMaskedLM").save_pretrained(tmp_path / "folder")
    return str(tmp_path / "folder")


@pytest.mark.parametrize("kind", ["keras_preset", "hugging_face_folder"])
def test_answers_and_losses_are_those_of_the_preset(kind, request):
    folder = request.getfixturevalue(kind)
    folder = folder if isinstance(folder, str) else folder[1]
    own = MegatronBertMaskedLM.from_preset(folder, preprocessor=None)
    padded = MegatronBertMaskedLM.from_preset(folder, preprocessor=None, vocabulary_size=ROWS)
    table = keras.ops.convert_to_numpy(padded.backbone.token_embedding.embeddings)
    assert table.shape[0] == padded.backbone.vocabulary_size == ROWS
    assert not table[STORED:].any()
    expected, found = own.logits(X), padded.logits(X)
    np.testing.assert_allclose(found[..., :STORED], expected, atol=1e-5)
    probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(found))
    assert (probabilities[..., STORED:] == 0).all()
    for model in (own, padded):
        model.compile(optimizer="sgd")
    losses = [m.test_on_batch(X, Y, sample_weight=WEIGHT)[0] for m in (own, padded)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_all_tasks_and_backbones_take_it(keras_preset):
    model, folder = keras_preset
    for cls in (MegatronBertPretrainer, MegatronBertBackbone):
        given = {} if cls is MegatronBertBackbone else {"preprocessor": None}
        loaded = cls.from_preset(folder, vocabulary_size=ROWS, **given)
        backbone = getattr(loaded, "backbone", loaded)
        table = keras.ops.convert_to_numpy(backbone.token_embedding.embeddings)
        own = keras.ops.convert_to_numpy(model.backbone.token_embedding.embeddings)
        np.testing.assert_array_equal(table[:STORED], own)


def test_rows_are_not_taken_away(keras_preset, hugging_face_folder):
    message = f"vocabulary_size={STORED - 1} must be an integer of at least {STORED}"
    for folder in (keras_preset[1], hugging_face_folder):
        with pytest.raises(ValueError, match=message):
            MegatronBertMaskedLM.from_preset(folder, preprocessor=None, vocabulary_size=STORED - 1)


def test_other_arrays_are_refused_as_before(keras_preset):
    loaded = MegatronBertBackbone.from_preset(keras_preset[1], vocabulary_size=ROWS)
    with pytest.raises(ValueError, match="shape"):
        loaded.token_embedding.embeddings.assign(np.zeros((STORED, loaded.hidden_dim)))
