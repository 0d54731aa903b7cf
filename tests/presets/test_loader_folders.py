"""`from_preset` with a Hugging Face folder, on each backend, and what stays KerasHub's own."""

import json
import shutil
import warnings

import keras
import keras_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from compare import TOLERANCE, assert_same_table, logits_error
from keras_hub.src.utils import preset_utils
from keras_hub.src.utils.transformers import preset_loader
from tiny_release import hf_model
from transformers import BertConfig, BertModel, MegatronBertForMaskedLM

from keras_megatron import (
    MegatronBertBackbone,
    MegatronBertCausalLM,
    MegatronBertMaskedLM,
    MegatronBertMaskedLMPreprocessor,
    MegatronBertTokenizer,
)
from keras_megatron.presets import loader

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "##es", "un", "."]


def write_tokenizer(folder, vocabulary):
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory):
    """A Hugging Face masked-LM folder without a tokenizer."""
    folder = tmp_path_factory.mktemp("hugging_face")
    model = MegatronBertForMaskedLM(hf_model().config)
    model.load_state_dict(hf_model().state_dict(), strict=False)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_hugging_face_folder(hf_folder, tmp_path, form):
    folder = hf_folder
    if form == "bin":
        folder = tmp_path
        (folder / "config.json").write_text((hf_folder / "config.json").read_text())
        torch.save(
            MegatronBertForMaskedLM.from_pretrained(hf_folder).state_dict(),
            folder / "pytorch_model.bin",
        )
    task = MegatronBertMaskedLM.from_preset(str(folder), preprocessor=None)
    assert logits_error(task) < TOLERANCE
    without = MegatronBertMaskedLM.from_preset(str(folder), preprocessor=None, load_weights=False)
    assert logits_error(without) > 0.1


def test_keras_hub_finds_the_classes_by_folder(hf_folder, tmp_path):
    for file in hf_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    write_tokenizer(tmp_path, VOCABULARY)
    hub, folder = keras_hub.models, str(tmp_path)
    assert type(hub.MaskedLM.from_preset(folder)) is MegatronBertMaskedLM
    with pytest.warns(UserWarning, match="no pooler"):
        assert type(hub.Backbone.from_preset(folder)) is MegatronBertBackbone
    assert type(hub.Tokenizer.from_preset(folder)) is MegatronBertTokenizer
    preprocessor = hub.MaskedLMPreprocessor.from_preset(folder)
    assert type(preprocessor) is MegatronBertMaskedLMPreprocessor
    assert preprocessor.sequence_length == 64


def test_a_pooler_that_is_not_there_starts_at_random(hf_folder):
    with pytest.warns(UserWarning, match="no pooler"):
        backbone = MegatronBertBackbone.from_preset(str(hf_folder))
    kernel = keras.ops.convert_to_numpy(backbone.get_layer("pooled_dense").kernel)
    assert kernel.std() == pytest.approx(backbone.initializer_range, rel=0.2)
    assert_same_table(backbone)


def test_a_decoder_is_no_encoder(hf_folder, tmp_path):
    config = json.loads((hf_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "is_decoder": True}))
    folder = str(tmp_path)
    with pytest.warns(UserWarning, match=r"holds a decoder .* call it with causal=True"):
        MegatronBertBackbone.from_preset(folder, load_weights=False)
    with pytest.raises(ValueError, match=r"holds a decoder .* load it with MegatronBertCausalLM"):
        MegatronBertMaskedLM.from_preset(folder, preprocessor=None, load_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        MegatronBertCausalLM.from_preset(folder, preprocessor=None, load_weights=False)


def test_folder_without_tokenizer_gives_a_task_for_ids(hf_folder):
    with pytest.warns(UserWarning, match="has no preprocessor and takes ids"):
        task = MegatronBertMaskedLM.from_preset(str(hf_folder))
    assert task.preprocessor is None
    (hf_folder / "spiece.model").write_bytes(b"")
    try:
        with pytest.warns(UserWarning, match=r"has a SentencePiece tokenizer \(spiece\.model\)"):
            MegatronBertMaskedLM.from_preset(str(hf_folder))
    finally:
        (hf_folder / "spiece.model").unlink()
    with pytest.raises(ValueError, match=r"has no vocabulary: add vocab\.txt"):
        MegatronBertTokenizer.from_preset(str(hf_folder))


@pytest.mark.filterwarnings("ignore:.*has no pooler")
@pytest.mark.parametrize("load_task_weights", [True, False])
def test_head_is_left_out_if_its_size_is_given(hf_folder, load_task_weights):
    """KerasHub asks so for `num_classes=`, which later tasks have."""
    loader = preset_utils.get_preset_loader(str(hf_folder))
    task = loader.load_task(MegatronBertMaskedLM, True, load_task_weights, preprocessor=None)
    head = keras.ops.convert_to_numpy(task.mlm_head.dense.kernel)
    expected = hf_model().cls.predictions.transform.dense.weight.detach().numpy().T
    assert np.allclose(head, expected) is load_task_weights
    assert_same_table(task.backbone)


def copy_folder(source, target, weights=None, **config):
    """Copies a folder with more weights, or with another configuration."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    content = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**content, **config}))
    path = target / "model.safetensors"
    safetensors.torch.save_file({**safetensors.torch.load_file(path), **(weights or {})}, path)
    return str(target)


def test_weights_without_a_place_are_named(hf_folder, tmp_path):
    more = {f"adapter.{i}": torch.zeros(1) for i in range(7)}
    folder = copy_folder(hf_folder, tmp_path, {**more, "classifier.bias": torch.zeros(2)})
    with pytest.warns(UserWarning, match=r"7 weights .*'adapter.0', .*'adapter.4', \.\.\.$"):
        MegatronBertMaskedLM.from_preset(folder, preprocessor=None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 10**6}, "lacks 'bert.encoder.layer.2."),
        ({"vocab_size": 10**12}, "needs .1000000000000, "),
        ({"hidden_size": 10**12, "num_attention_heads": 1}, "needs .*, 1000000000000"),
    ],
)
def test_absurd_sizes_take_no_memory(hf_folder, tmp_path, config, message):
    folder = copy_folder(hf_folder, tmp_path, **config)
    with pytest.raises(ValueError, match=message):
        MegatronBertMaskedLM.from_preset(folder, preprocessor=None)
    with pytest.raises(ValueError, match=message):
        MegatronBertBackbone.from_preset(folder)


def test_saved_again_as_a_keras_preset(hf_folder, tmp_path):
    task = MegatronBertMaskedLM.from_preset(str(hf_folder), preprocessor=None)
    task.save_to_preset(str(tmp_path / "keras"))
    task = keras_hub.models.MaskedLM.from_preset(str(tmp_path / "keras"))
    assert logits_error(task) < TOLERANCE


def test_folder_without_head(tmp_path):
    hf_model().bert.save_pretrained(tmp_path)
    backbone = MegatronBertBackbone.from_preset(str(tmp_path))
    with pytest.warns(UserWarning, match="no masked-language-model head: it is random"):
        task = MegatronBertMaskedLM.from_preset(str(tmp_path), preprocessor=None)
    for model in (backbone, task.backbone):
        assert_same_table(model)


@pytest.mark.parametrize("shard_size", ["1GB", "1MB"])
def test_address_of_a_hub(hf_folder, tmp_path, monkeypatch, shard_size):
    """`hf://` with the client's download replaced by a copy, file by file."""
    there, here = tmp_path / "there", tmp_path / "here"
    here.mkdir()
    model = MegatronBertForMaskedLM.from_pretrained(hf_folder)
    model.save_pretrained(there, max_shard_size=shard_size)
    assert (there / "model.safetensors").exists() is (shard_size == "1GB")

    def copy(repo_id, filename):
        if not (there / filename).exists():
            raise preset_utils.EntryNotFoundError("no such file")
        return shutil.copy(there / filename, here)

    monkeypatch.setattr(preset_utils.huggingface_hub, "hf_hub_download", copy)
    task = MegatronBertMaskedLM.from_preset("hf://somebody/megatron", preprocessor=None)
    assert logits_error(task) < TOLERANCE
    for file in there.glob("model*"):
        file.unlink()
    with pytest.raises(ValueError, match="hf://somebody/megatron has no weights"):
        MegatronBertMaskedLM.from_preset("hf://somebody/megatron", preprocessor=None)


# === What stays KerasHub's ===


def test_other_types_go_to_keras_hub(tmp_path):
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path, VOCABULARY)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    backbone = keras_hub.models.Backbone.from_preset(str(tmp_path))
    assert type(backbone) is keras_hub.models.BertBackbone
    assert_same_table(backbone, model)
    tokenizer = keras_hub.models.Tokenizer.from_preset(str(tmp_path))
    assert type(tokenizer) is keras_hub.models.BertTokenizer


def test_unknown_types_are_refused_by_keras_hub(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such"}))
    with pytest.raises(ValueError, match="KerasHub has no converter"):
        keras_hub.models.Backbone.from_preset(str(tmp_path))


def test_loader_is_installed_once():
    installed = preset_loader.TransformersPresetLoader
    loader.install_loader()
    assert preset_loader.TransformersPresetLoader is installed
    assert issubclass(installed, loader.KERAS_HUB_LOADER)
