import dataclasses
import hashlib

import keras_hub
import pytest
from tiny_release import NAME

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.presets.registry import Release, find, known

pytestmark = pytest.mark.backend_independent

NGC = "https://api.ngc.nvidia.com/v2/models/nvidia/megatron_bert_345m/versions"
RELEASED = {
    "megatron_bert_345m_uncased": f"{NGC}/v0.1_uncased/zip",
    "megatron_bert_345m_cased": f"{NGC}/v0.1_cased/zip",
}
# Of the encoder with its pooler, from the sizes of arXiv 1909.08053 table 4 (24 and 48 layers).
PARAMETERS = {
    "megatron_bert_345m_uncased": 335_213_568,
    "megatron_bert_345m_cased": 333_640_704,
    "megatron_bert_1_3b_uncased": 1_276_504_064,
    "megatron_bert_3_9b_uncased": 3_862_663_680,
}


def test_names_are_listed_by_keras_hub():
    assert set(PARAMETERS) <= set(MegatronBertBackbone.presets)
    assert set(PARAMETERS) <= set(keras_hub.models.Backbone.presets)
    assert set(PARAMETERS) <= set(keras_hub.models.MaskedLM.presets)
    assert "bert_base_en" not in MegatronBertBackbone.presets


@pytest.mark.parametrize("name", PARAMETERS)
def test_metadata(name):
    metadata = MegatronBertBackbone.presets[name]["metadata"]
    assert metadata["params"] == PARAMETERS[name]
    assert metadata["path"] == "megatron_bert"
    assert metadata["description"].endswith(".")


def test_pretraining_parameters_are_those_of_the_release():
    """The counts published for the whole pretraining models, heads included."""
    for name, published in (("cased", 334_723_458), ("uncased", 336_297_858)):
        size = find(f"megatron_bert_345m_{name}").backbone_arguments()
        hidden = size["hidden_dim"]
        masked_lm = hidden * hidden + hidden + 2 * hidden + size["vocabulary_size"]
        binary = 2 * hidden + 2
        assert find(f"megatron_bert_345m_{name}").parameters() + masked_lm + binary == published


def test_parameters_are_counted_as_keras_counts_them(tiny):
    assert tiny.parameters() == MegatronBertBackbone(**tiny.backbone_arguments()).count_params()


def test_embedded_preset_is_told_by_its_format(tiny, tmp_path):
    backbone = MegatronBertBackbone(**tiny.backbone_arguments())
    backbone.save_to_preset(str(tmp_path / "complete"))
    complete = dataclasses.replace(tiny, directory=tmp_path / "complete")
    assert (complete.embedded, tiny.embedded) == (True, False)
    assert complete.parameters() == tiny.parameters()


def test_arguments_of_the_released_model():
    arguments = find("megatron_bert_345m_uncased").backbone_arguments()
    expected = {
        "vocabulary_size": 30592,
        "num_layers": 24,
        "num_heads": 16,
        "hidden_dim": 1024,
        "intermediate_dim": 4096,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "max_sequence_length": 512,
        "num_segments": 2,
        "layer_norm_epsilon": 1e-5,
        "activation": "gelu",
    }
    assert {name: arguments.get(name) for name in expected} == expected


def test_addresses(monkeypatch):
    releases = {preset.name: preset.release.url for preset in known() if preset.release}
    assert releases == RELEASED
    monkeypatch.setenv("KERAS_MEGATRON_BASE_URL", "http://mirror:8000/models/")
    url = find("megatron_bert_345m_cased").release.url
    assert url == "http://mirror:8000/models/nvidia/megatron_bert_345m/versions/v0.1_cased/zip"


def test_address_that_is_not_http(monkeypatch):
    monkeypatch.setenv("KERAS_MEGATRON_BASE_URL", "file:///etc")
    with pytest.raises(ValueError, match=r"must begin with http:// or https://.*'file:///etc'"):
        _ = Release("a/b", "1").url


@pytest.mark.parametrize(
    ("name", "pieces", "md5"),
    [
        ("megatron_bert_345m_uncased", 30522, "64800d5d8528ce344256daf115d4965e"),
        ("megatron_bert_345m_cased", 28996, "bb6ca9b42e790e5cd986bbb16444d0e0"),
    ],
)
def test_vocabularies_are_googles(name, pieces, md5):
    data = find(name).vocabulary_file.read_bytes()
    assert hashlib.md5(data).hexdigest() == md5
    assert len(data.decode().splitlines()) == pieces


def test_unknown_names(tiny):
    assert find(NAME) is tiny
    assert find("megatron_bert_5b") is None
    assert dataclasses.replace(tiny, name="other") not in known()
