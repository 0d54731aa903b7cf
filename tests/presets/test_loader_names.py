"""`from_preset` with a name, on each backend."""

import keras
import keras_hub
import numpy as np
import pytest
from compare import TOLERANCE, assert_same_table, logits_error
from keras_hub.src.utils.preset_utils import register_presets
from tiny_release import NAME

from keras_megatron import (
    MegatronBertBackbone,
    MegatronBertMaskedLM,
    MegatronBertMaskedLMPreprocessor,
    MegatronBertTokenizer,
)
from keras_megatron.presets.cache import converted_weights

TEXT = "The quick brown fox."
IDS = [1996, 4248, 2829, 4419, 1012]


def test_name_with_weights(tiny, server):
    task = MegatronBertMaskedLM.from_preset(NAME)
    assert logits_error(task) < TOLERANCE
    backbone = MegatronBertBackbone.from_preset(NAME)
    for ours, same in zip(backbone.get_weights(), task.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, same)
    assert len(server.requests) == 1
    assert task.preprocessor.tokenizer.tokenize(TEXT).tolist() == IDS


def test_folder_called_like_a_name(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    with pytest.warns(UserWarning, match=f"use './{NAME}' for the folder") as caught:
        MegatronBertTokenizer.from_preset(NAME)
    assert caught[0].filename == __file__


def test_name_without_weights(tiny, server):
    task = MegatronBertMaskedLM.from_preset(NAME, load_weights=False)
    assert server.requests == []
    assert logits_error(task) > 0.1  # so the test above shows something
    assert task.preprocessor.tokenizer.tokenize(TEXT).tolist() == IDS


def test_same_architecture_with_and_without_weights(tiny, server):
    with_weights = MegatronBertMaskedLM.from_preset(NAME)
    without = MegatronBertMaskedLM.from_preset(NAME, load_weights=False)
    configs = [task.backbone.get_config() for task in (with_weights, without)]
    for config in configs:
        del config["name"]
    assert configs[0] == configs[1]
    configs = [task.preprocessor.get_config() for task in (with_weights, without)]
    for config in configs:
        del config["name"], config["tokenizer"]
    assert configs[0] == configs[1]
    assert with_weights.head_activation == without.head_activation


def test_cached_name_builds_one_model(tiny, server, monkeypatch):
    MegatronBertMaskedLM.from_preset(NAME)
    built = []
    original = MegatronBertBackbone.__init__

    def counting(self, *args, **kwargs):
        built.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(MegatronBertBackbone, "__init__", counting)
    MegatronBertMaskedLM.from_preset(NAME)
    assert len(built) == 1


def test_conversion_does_not_depend_on_the_dtype_policy(tiny, server):
    keras.config.set_dtype_policy("bfloat16")
    try:
        converted_weights(tiny)
    finally:
        keras.config.set_dtype_policy("float32")
    task = MegatronBertMaskedLM.from_preset(NAME)
    assert_same_table(task.backbone)


def test_first_use_leaves_the_random_state_alone(tiny, server):
    """What is drawn after it is the same whether or not a conversion came first."""
    draws = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        MegatronBertMaskedLM.from_preset(NAME)
        draws.append(keras.ops.convert_to_numpy(keras.random.normal((3,))))
    assert len(server.requests) == 1
    np.testing.assert_array_equal(*draws)


@pytest.mark.parametrize("load_weights", [True, False])
def test_dtype(tiny, server, load_weights):
    task = MegatronBertMaskedLM.from_preset(NAME, load_weights=load_weights, dtype="bfloat16")
    assert {variable.dtype for variable in task.weights} == {"bfloat16"}
    backbone = MegatronBertBackbone.from_preset(NAME, load_weights=load_weights, dtype="bfloat16")
    assert backbone.dtype_policy.name == "bfloat16"


def test_backbone_arguments_can_be_changed(tiny):
    backbone = MegatronBertBackbone.from_preset(NAME, load_weights=False, dropout=0.5)
    assert backbone.dropout == 0.5


def test_tokenizer_and_preprocessor_do_not_download(tiny, server):
    tokenizer = MegatronBertTokenizer.from_preset(NAME)
    assert tokenizer.vocabulary_size() == 30522
    assert tokenizer.tokenize(TEXT.upper()).tolist() == IDS
    preprocessor = MegatronBertMaskedLMPreprocessor.from_preset(NAME, mask_selection_rate=0.3)
    assert preprocessor.mask_selection_rate == 0.3
    assert preprocessor.sequence_length == 64
    assert server.requests == []


def test_keras_hub_finds_the_classes_by_name(tiny, server):
    hub = keras_hub.models
    assert type(hub.Tokenizer.from_preset(NAME)) is MegatronBertTokenizer
    preprocessor = hub.MaskedLMPreprocessor.from_preset(NAME)
    assert type(preprocessor) is MegatronBertMaskedLMPreprocessor
    assert server.requests == []
    assert type(hub.MaskedLM.from_preset(NAME)) is MegatronBertMaskedLM
    assert type(hub.Backbone.from_preset(NAME)) is MegatronBertBackbone


def test_released_sizes_without_weights_need_no_network(monkeypatch):
    """The class and the arguments that would be built; building 345M parameters takes long."""
    built = {}
    monkeypatch.setattr(
        MegatronBertBackbone, "__init__", lambda self, **kwargs: built.update(kwargs)
    )
    keras_hub.models.Backbone.from_preset("megatron_bert_3_9b_uncased", load_weights=False)
    assert (built["num_layers"], built["hidden_dim"], built["num_heads"]) == (48, 2560, 40)
    with pytest.raises(ValueError, match=r"no weights were released.*load_weights=False"):
        keras_hub.models.Backbone.from_preset("megatron_bert_3_9b_uncased")


CLASSES = [
    MegatronBertBackbone,
    MegatronBertMaskedLM,
    MegatronBertMaskedLMPreprocessor,
    MegatronBertTokenizer,
]


@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_no_preset_is_one_line_with_a_remedy(cls, tmp_path):
    name = "megatron_bert_345m_uncase"
    with pytest.raises(
        ValueError, match=rf"^'{name}' is neither .*: did you mean {name}d"
    ) as caught:
        cls.from_preset(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"is no preset, as it has no config\.json$"):
        cls.from_preset(str(tmp_path))
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"did you mean {tmp_path}/preset\\?$"):
        cls.from_preset(tmp_path)
    with pytest.raises(ValueError, match="must be a string"):
        cls.from_preset(3)


@pytest.mark.backend_independent
def test_other_presets_that_keras_hub_knows(tmp_path):
    MegatronBertMaskedLM.from_preset("megatron_bert_tiny_uncased").save_to_preset(str(tmp_path))
    entry = {"metadata": {"description": "", "params": 1, "path": ""}}
    name = "a_preset_of_yours"
    register_presets({name: {**entry, "kaggle_handle": str(tmp_path)}}, MegatronBertBackbone)
    assert MegatronBertBackbone.from_preset(name).num_layers > 0
    assert MegatronBertTokenizer.from_preset(name).vocabulary_size() > 0
    with pytest.raises(ValueError, match="hub give 'hf://nvidia/megatron-bert-uncased-345m'"):
        MegatronBertBackbone.from_preset("nvidia/megatron-bert-uncased-345m")


@pytest.mark.backend_independent
def test_paths_are_presets(tmp_path):
    tokenizer = MegatronBertTokenizer.from_preset("megatron_bert_tiny_uncased")
    task = MegatronBertMaskedLM.from_preset("megatron_bert_tiny_uncased")
    task.save_to_preset(str(tmp_path))
    assert MegatronBertTokenizer.from_preset(tmp_path).vocabulary == tokenizer.vocabulary
    same = MegatronBertMaskedLM.from_preset(tmp_path)
    for ours, expected in zip(same.get_weights(), task.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)
