import copy
import os
import pickle
import subprocess
import sys

import keras
import keras_hub
import pytest
from bert_reference import PIECES, VOCABULARIES, tokenizer

from keras_megatron import MegatronBertBackbone, MegatronBertTokenizer


def assert_equal(restored, original):
    assert isinstance(restored, MegatronBertTokenizer)
    assert restored.lowercase == original.lowercase
    assert restored.get_vocabulary() == original.get_vocabulary()
    assert restored.mask_token_id == original.mask_token_id
    texts = ["The Cafés [MASK] 日本 İstanbul", ""]
    assert restored.tokenize(texts) == original.tokenize(texts)


def test_pickle_and_copy():
    for original in (tokenizer("cased"), MegatronBertTokenizer(PIECES, dtype="int64")):
        for restored in (pickle.loads(pickle.dumps(original)), copy.deepcopy(original)):
            assert_equal(restored, original)
            assert restored.compute_dtype == original.compute_dtype


def test_configuration_leaves_the_vocabulary_to_the_assets(tmp_path):
    small = MegatronBertTokenizer(PIECES)
    config = keras.saving.serialize_keras_object(small)
    assert config["registered_name"] == "keras_megatron>MegatronBertTokenizer"
    assert config["config"]["vocabulary"] is None
    restored = keras.saving.deserialize_keras_object(config)
    assert restored.vocabulary is None
    small.save_assets(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vocabulary.txt"]
    restored.load_assets(tmp_path)
    assert_equal(restored, small)


def test_preset_directory(tmp_path):
    original = tokenizer("cased")
    original.save_to_preset(tmp_path)
    assert (tmp_path / "assets/tokenizer/vocabulary.txt").read_bytes() == VOCABULARIES[
        "cased"
    ].read_bytes()
    backbone = MegatronBertBackbone(
        vocabulary_size=original.vocabulary_size(),
        num_layers=1,
        num_heads=1,
        hidden_dim=2,
        intermediate_dim=2,
    )
    backbone.save_to_preset(tmp_path)
    assert_equal(MegatronBertTokenizer.from_preset(str(tmp_path)), original)
    assert_equal(keras_hub.models.Tokenizer.from_preset(str(tmp_path)), original)


def test_a_stored_configuration_names_no_file(tmp_path):
    config = keras.saving.serialize_keras_object(tokenizer("uncased"))
    config["config"]["vocabulary"] = str(VOCABULARIES["uncased"])
    with pytest.raises(TypeError, match="outside of its own files"):  # as Keras wraps it
        keras.saving.deserialize_keras_object(config)
    restored = keras.saving.deserialize_keras_object(config, safe_mode=False)
    assert_equal(restored, tokenizer("uncased"))


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="needs TensorFlow to run")
def test_without_tensorflow():
    script = """
import sys
sys.modules.update(dict.fromkeys(["tensorflow", "tensorflow_text"]))
from keras_megatron import MegatronBertTokenizer
bert = MegatronBertTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cafe", "##s"])
print(bert(["the cafés"]), bert.encode("the")["token_ids"].tolist(), bert.detokenize([5, 6, 7]))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[[5, 6, 7]] [2, 5, 3] the cafes\n"
