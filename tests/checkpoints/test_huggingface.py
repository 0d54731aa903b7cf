"""Hugging Face folders to Keras and back, against transformers."""

import json
import warnings

import keras
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from checkpoint_helpers import (
    make_inputs,
    make_reference,
    masked_lm_logits,
    one_line_error,
    reference_outputs,
    tree,
)

from keras_megatron import (
    MegatronBertBackbone,
    MegatronBertMaskedLM,
    MegatronBertMaskedLMPreprocessor,
    MegatronBertTokenizer,
)
from keras_megatron.checkpoints import (
    backbone_config,
    export_to_transformers,
    load_weights,
    task_arguments,
)
from keras_megatron.checkpoints.architectures import promised_parts
from keras_megatron.checkpoints.huggingface import open_weights
from keras_megatron.checkpoints.huggingface_config import ACTIVATIONS
from keras_megatron.layers.common import get_activation

TOLERANCE = 2e-5


def build(folder, task=True, **options):
    config = json.loads((folder / "config.json").read_text())
    backbone = MegatronBertBackbone(**{**backbone_config(config), **options})
    return (
        MegatronBertMaskedLM(backbone, **task_arguments(MegatronBertMaskedLM, config))
        if task
        else backbone
    )


def load(folder, task=True):
    model = build(folder, task)
    return model, load_weights(model, folder)


def save(model, folder, kind):
    """Saves a Hugging Face model in one of the layouts that are found in the wild."""
    if kind == "sharded":
        model.save_pretrained(folder, max_shard_size="20KB")
    else:
        model.save_pretrained(folder)
    if kind.startswith("bin"):
        (folder / "model.safetensors").unlink()
        state = model.state_dict()
        names = sorted(state)
        if kind == "bin, stream":
            torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        elif kind == "bin":
            torch.save(state, folder / "pytorch_model.bin")
        else:
            shards = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
            for file, keys in shards.items():
                torch.save({key: state[key] for key in keys}, folder / file)
            weight_map = {key: file for file, keys in shards.items() for key in keys}
            index = {"metadata": {}, "weight_map": weight_map}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.backend_independent
@pytest.mark.parametrize("kind", ["safetensors", "sharded", "bin", "bin, stream", "bin, sharded"])
@pytest.mark.parametrize("architecture", ["MegatronBertForPreTraining", "MegatronBertModel"])
def test_every_layout_of_files_holds_the_same_weights(tmp_path, architecture, kind):
    reference = make_reference(architecture)
    save(reference, tmp_path, kind)
    found = open_weights(tmp_path)
    expected = reference.state_dict()
    if architecture == "MegatronBertModel":
        expected = {f"bert.{name}": tensor for name, tensor in expected.items()}
    copies = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert found.keys() == expected.keys() - copies
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor.read(), expected[name].numpy(), err_msg=name)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_masked_lm_from_hugging_face(tmp_path, activation):
    reference = make_reference(
        "MegatronBertForMaskedLM", layer_norm_eps=1e-12, hidden_act=activation
    )
    save(reference, tmp_path, "safetensors")
    model, unused = load(tmp_path)
    inputs = make_inputs(reference.config)
    expected = reference_outputs(reference, inputs)["logits"]
    found = masked_lm_logits(model, inputs)
    assert np.abs(found - expected)[inputs["padding_mask"] == 1].max() < TOLERANCE
    assert unused == []


def test_a_pair_of_swapped_kernels_shows(tmp_path):
    """Negative control: query and value of one layer change places."""
    reference = make_reference("MegatronBertForMaskedLM")
    save(reference, tmp_path, "safetensors")
    path = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(path)
    query, value = (f"bert.encoder.layer.1.attention.self.{x}.weight" for x in ("query", "value"))
    state[query], state[value] = state[value], state[query]
    safetensors.torch.save_file(state, path)
    inputs = make_inputs(reference.config)
    found = masked_lm_logits(load(tmp_path)[0], inputs)
    difference = np.abs(found - reference_outputs(reference, inputs)["logits"]).max()
    assert difference > 1000 * TOLERANCE


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    theirs = transformers.activations.ACT2FN[activation]
    ours = get_activation(ACTIVATIONS[activation])
    x = np.linspace(-9, 9, 301, dtype="f4")
    expected = theirs(torch.tensor(x)).numpy()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(ours(x)), expected, atol=2e-6)


def test_backbone_from_a_bare_model_and_from_one_with_heads(tmp_path):
    for architecture in ("MegatronBertModel", "MegatronBertForPreTraining"):
        reference = make_reference(architecture)
        folder = tmp_path / architecture
        save(reference, folder, "safetensors")
        model, unused = load(folder, task=False)
        assert all(name.startswith("cls.") for name in unused)
        assert bool(unused) == (architecture != "MegatronBertModel")
        inputs = make_inputs(reference.config)
        expected = reference_outputs(getattr(reference, "bert", reference), inputs)
        found = model.predict_on_batch(inputs)
        shown = inputs["padding_mask"] == 1
        difference = np.abs(found["sequence_output"] - expected["last_hidden_state"])[shown].max()
        assert difference < TOLERANCE
        assert np.abs(found["pooled_output"] - expected["pooler_output"]).max() < TOLERANCE


def test_bfloat16_weights(tmp_path):
    reference = make_reference("MegatronBertForMaskedLM")
    save(reference.bfloat16(), tmp_path, "safetensors")
    model, _ = load(tmp_path)
    inputs = make_inputs(reference.config)
    expected = reference_outputs(reference.float(), inputs)["logits"]
    found = masked_lm_logits(model, inputs)
    assert np.abs(found - expected)[inputs["padding_mask"] == 1].max() < TOLERANCE


def test_a_head_that_is_not_there_stays_random(tmp_path):
    save(make_reference("MegatronBertModel"), tmp_path, "safetensors")
    model = build(tmp_path)
    before = keras.ops.convert_to_numpy(model.mlm_head.dense.kernel).copy()
    with pytest.warns(UserWarning, match="no masked-language-model head"):
        load_weights(model, tmp_path)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model.mlm_head.dense.kernel), before)


def test_a_pooler_that_is_not_there_stays_random(tmp_path):
    save(make_reference("MegatronBertForMaskedLM"), tmp_path, "safetensors")
    with pytest.warns(UserWarning, match="no pooler"):
        load(tmp_path, task=False)


# === Keras to Hugging Face ===


def random_masked_lm(**options):
    backbone = MegatronBertBackbone(
        vocabulary_size=128,
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        intermediate_dim=48,
        max_sequence_length=24,
        **options,
    )
    model = MegatronBertMaskedLM(backbone, head_activation=options.get("activation", "gelu"))
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(
            0.15 * rng.standard_normal(variable.shape, "f4") + (len(variable.shape) == 1)
        )
    return model


@pytest.mark.parametrize("activation", ["gelu", "gelu_approximate"])
def test_masked_lm_to_hugging_face(tmp_path, activation):
    model = random_masked_lm(activation=activation, layer_norm_epsilon=1e-6)
    folder = tmp_path / "exported"
    export_to_transformers(model, folder)
    reference, report = transformers.MegatronBertForMaskedLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    inputs = make_inputs(reference.config)
    expected = reference_outputs(reference.eval(), inputs)["logits"]
    found = masked_lm_logits(model, inputs)
    assert np.abs(found - expected)[inputs["padding_mask"] == 1].max() < TOLERANCE
    again, unused = load(folder)
    assert unused == []
    np.testing.assert_array_equal(masked_lm_logits(again, inputs), found)


def test_backbone_to_hugging_face(tmp_path):
    model = random_masked_lm().backbone
    export_to_transformers(model, tmp_path / "exported")
    reference, report = transformers.AutoModel.from_pretrained(
        tmp_path / "exported", output_loading_info=True
    )
    assert type(reference) is transformers.MegatronBertModel
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    inputs = make_inputs(reference.config)
    expected = reference_outputs(reference.eval(), inputs)
    found = model.predict_on_batch(inputs)
    assert np.abs(found["pooled_output"] - expected["pooler_output"]).max() < TOLERANCE


def test_the_exported_tokenizer(tmp_path, vocabulary):
    model = random_masked_lm()
    preprocessor = MegatronBertMaskedLMPreprocessor(
        MegatronBertTokenizer(vocabulary), sequence_length=24
    )
    model = MegatronBertMaskedLM(model.backbone, preprocessor)
    export_to_transformers(model, tmp_path / "exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    texts = ["word1 Word2 [MASK]!", "word94"]
    assert tokenizer(texts).input_ids == [[2, 6, 7, 4, 1, 3], [2, 99, 3]]
    assert tokenizer.model_max_length == 24


def test_half_precision_is_kept(tmp_path):
    model = random_masked_lm(dtype="bfloat16")
    export_to_transformers(model, tmp_path / "exported")
    state = safetensors.torch.load_file(tmp_path / "exported" / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    words = keras.ops.convert_to_numpy(
        keras.ops.cast(model.backbone.token_embedding.embeddings, "float32")
    )
    exported = state["bert.embeddings.word_embeddings.weight"].float().numpy()
    np.testing.assert_array_equal(exported, words)


def test_what_hugging_face_has_no_place_for(tmp_path):
    masked_lm = random_masked_lm()
    backbone = masked_lm.backbone
    mixed = MegatronBertMaskedLM(backbone, head_activation="gelu_approximate")
    with one_line_error("'gelu_approximate'", "'gelu'"):
        export_to_transformers(mixed, tmp_path / "exported")
    with one_line_error("activation", "elu"):
        export_to_transformers(random_masked_lm(activation="elu"), tmp_path / "exported")
    with one_line_error("head_dim", "16"):
        export_to_transformers(random_masked_lm(head_dim=16), tmp_path / "exported")
    backbone.enable_lora(2)
    with one_line_error("lora"):
        export_to_transformers(backbone, tmp_path / "exported")
    assert tree(tmp_path) == []


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    model = random_masked_lm()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("keras_megatron.checkpoints.export.save_safetensors", fail)
    with one_line_error("No space left"):
        export_to_transformers(model, tmp_path / "exported")
    assert tree(tmp_path) == []


# === What is refused ===


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(folder, **changes):
    path = folder / "model.safetensors"
    state = {**safetensors.torch.load_file(path), **changes}
    kept = {key: value.contiguous() for key, value in state.items() if value is not None}
    safetensors.torch.save_file(kept, path)


@pytest.fixture
def folder(tmp_path):
    save(make_reference("MegatronBertForMaskedLM"), tmp_path, "safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"bert.encoder.ln.bias": None}, ["lacks", "bert.encoder.ln.bias", "(32,)"]),
        ({"cls.predictions.bias": None}, ["lacks", "cls.predictions.bias"]),
        ({"bert.encoder.layer.3.ln.bias": torch.zeros(32)}, ["layer.3.ln.bias", "no place"]),
        ({"bert.encoder.ln.bias": torch.zeros(31)}, ["(31,)", "(32,)"]),
        ({"bert.encoder.ln.bias": torch.zeros(32).int()}, ["int32"]),
        ({"cls.predictions.other": torch.zeros(3)}, ["cls.predictions.other", "no place"]),
        ({"cls.predictions.decoder.weight": torch.zeros(128, 32)}, ["decoder.weight", "untied"]),
        ({"cls.predictions.decoder.bias": torch.zeros(128)}, ["decoder.bias", "untied"]),
    ],
)
def test_weights_that_do_not_fit(folder, changes, parts):
    edit_weights(folder, **changes)
    model = build(folder)
    before = [keras.ops.convert_to_numpy(weight).copy() for weight in model.weights]
    with one_line_error(*parts):
        load_weights(model, folder)
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), old)


def test_the_whole_head_is_needed_where_it_is_promised(folder):
    state = safetensors.torch.load_file(folder / "model.safetensors")
    edit_weights(folder, **{key: None for key in state if key.startswith("cls.")})
    with one_line_error("lacks", "cls.predictions"):
        load(folder)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"hidden_act": "gelu_10"}, ["gelu_10", "gelu_new"]),
        ({"hidden_act": ["gelu"]}, ["hidden_act=['gelu']"]),
        ({"vocab_size": "128"}, ["vocab_size='128'", "integer"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers=True"]),
        ({"hidden_size": 0}, ["hidden_size=0"]),
        ({"hidden_size": 1000}, ["hidden_size=1000", "num_attention_heads"]),
        ({"num_attention_heads": [1] * 999}, ["num_attention_heads=[1"]),
        ({"hidden_dropout_prob": 1.5}, ["hidden_dropout_prob=1.5", "from 0 to 1"]),
        ({"initializer_range": float("nan")}, ["initializer_range=nan"]),
        ({"layer_norm_eps": 0}, ["layer_norm_eps=0"]),
        ({"layer_norm_eps": "1e-5"}, ["layer_norm_eps='1e-5'"]),
        ({"is_decoder": 1}, ["is_decoder=1"]),
        ({"add_cross_attention": True}, ["add_cross_attention"]),
        ({"position_embedding_type": "relative_key"}, ["relative_key"]),
    ],
)
def test_configurations_of_other_models(changes, parts):
    with one_line_error(*parts):
        backbone_config(changes)


@pytest.mark.backend_independent
@pytest.mark.parametrize("names", ["MegatronBertForMaskedLM", [["a"]], {}])
def test_architectures_of_another_type(names):
    with one_line_error("architectures"):
        promised_parts({"architectures": names})


@pytest.mark.backend_independent
def test_the_defaults_are_those_of_transformers():
    config = transformers.MegatronBertConfig()
    assert backbone_config({}) == backbone_config(config.to_dict())


def test_files_that_cannot_be_read(folder):
    model = build(folder)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with one_line_error(path, "truncated"):
        load_weights(model, folder)
    path.unlink()
    with one_line_error(folder, "model.safetensors", "pytorch_model.bin"):
        load_weights(model, folder)
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle")
    with one_line_error("pytorch_model.bin", "torch.save"):
        load_weights(model, folder)
    (folder / "pytorch_model.bin").unlink()
    for weight_map in ({"a": "../other.bin"}, {"a": "/other.bin"}, {"a": 1}, [], None):
        index = folder / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        with one_line_error(index):
            load_weights(model, folder)
    (folder / "config.json").write_text("{")
    with one_line_error("config.json"):
        load_weights(model, folder)


def test_loading_does_not_warn(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load(folder)
