"""What is said of presets whose files hold something else than they should."""

import json

import pytest
from models import small_backbone

from keras_megatron import MegatronBertTextClassifier
from keras_megatron.presets.stored_task import class_of, is_quantized, stored_task

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
