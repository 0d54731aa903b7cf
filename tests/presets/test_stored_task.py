"""What is said of presets whose files hold something else than they should."""

import json

import keras
import numpy as np
import pytest
from models import as_numpy, small_backbone

from keras_megatron import MegatronBertBackbone, MegatronBertTextClassifier
from keras_megatron.presets.stored_task import class_of, is_quantized, stored_dtype, stored_task

pytestmark = pytest.mark.backend_independent


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    classifier = MegatronBertTextClassifier(small_backbone(), num_classes=3, preprocessor=None)
    classifier.save_to_preset(str(folder))
    return {path.name: path.read_text() for path in folder.glob("*.json")}


def test_a_whole_one(whole, tmp_path):
    for name, content in whole.items():
        (tmp_path / name).write_text(content)
    stored = stored_task(str(tmp_path))
    assert (stored.name, stored.num_classes) == ("MegatronBertTextClassifier", 3)
    assert class_of(str(tmp_path)) is MegatronBertTextClassifier
    assert not is_quantized(str(tmp_path))


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantized_weights_load_into_other_classes(mode, tmp_path):
    classifier = MegatronBertTextClassifier(small_backbone(), num_classes=3, preprocessor=None)
    classifier.quantize(mode)
    classifier.save_to_preset(str(tmp_path / "task"))
    classifier.backbone.save_to_preset(str(tmp_path / "backbone"))
    inputs = {name: np.ones((2, 5), "int32") for name in classifier.backbone.input}
    expected = as_numpy(classifier.backbone(inputs)["sequence_output"])
    for folder in ("task", "backbone"):
        preset = str(tmp_path / folder)
        assert is_quantized(preset)
        backbone = MegatronBertBackbone.from_preset(preset)
        other = MegatronBertTextClassifier.from_preset(preset, num_classes=2, preprocessor=None)
        for loaded in (backbone, other.backbone):
            found = as_numpy(loaded(inputs)["sequence_output"])
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert stored_dtype(str(tmp_path / "task")) == "float32"


def test_quantized_model_is_saved_over_itself(tmp_path):
    model = MegatronBertTextClassifier(small_backbone(), num_classes=3, preprocessor=None)
    model.quantize("int8")
    file = tmp_path / "model.keras"
    model.save(file)
    inputs = {name: np.ones((2, 5), "int32") for name in model.backbone.input}
    for _ in range(2):
        loaded = keras.saving.load_model(file)
        np.testing.assert_allclose(as_numpy(loaded(inputs)), as_numpy(model(inputs)), atol=1e-5)
        loaded.save(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("task.json", [], "task.json does not hold a JSON object: the preset is damaged"),
        ("task.json", {}, "task.json lacks a class_name or a config: the preset is damaged"),
        ("task.json", {"class_name": "A", "config": []}, "lacks a class_name or a config"),
        ("task.json", "{", "task.json is not JSON"),
        ("preprocessor.json", {"class_name": 1, "config": {}}, "preprocessor.json lacks a"),
        ("config.json", {"class_name": "MegatronBertBackbone", "config": []}, "config.json lacks"),
        ("config.json", [1], "config.json does not hold a JSON object"),
    ],
)
def test_a_damaged_one_is_named(whole, tmp_path, name, content, message):
    text = content if isinstance(content, str) else json.dumps(content)
    for file, right in {**whole, name: text}.items():
        (tmp_path / file).write_text(right)
    ask = is_quantized if name == "config.json" else stored_task
    with pytest.raises(ValueError, match=message) as error:
        ask(str(tmp_path))
    assert "\n" not in str(error.value)
