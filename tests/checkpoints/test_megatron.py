"""What is found in a Megatron checkpoint, against the Hugging Face model that it was made from."""

import argparse
import io

import numpy as np
import pytest
import release_format
import torch
from checkpoint_helpers import make_reference, one_line_error

from keras_megatron.checkpoints.mapped_files import MappedFile
from keras_megatron.checkpoints.megatron import read_megatron
from keras_megatron.checkpoints.shards import Shard
from keras_megatron.checkpoints.torch_files import load_torch_file

pytestmark = pytest.mark.backend_independent
ALL_NAMES = [
    release_format.OLD_NAMES,
    release_format.LATER_NAMES,
    release_format.NEWEST_NAMES,
    {**release_format.OLD_NAMES, "encoder": "encoder"},
    {**release_format.OLD_NAMES, "attention": "self_attention"},
]


def reload(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return load_torch_file(MappedFile(memoryview(buffer.getvalue())))


def read(state, **options):
    return read_megatron([Shard(0, 0, reload(state))], **options)


def largest_difference(found, model):
    """Largest difference between what was read and the model's own weights, by their names."""
    expected = model.state_dict()
    assert found.weights.keys() <= expected.keys()
    return max(
        np.abs(tensor.read().astype("f4") - expected[name].numpy()).max()
        for name, tensor in found.weights.items()
    )


def missing(found, model):
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    return model.state_dict().keys() - found.weights.keys() - tied


@pytest.mark.parametrize("names", ALL_NAMES)
@pytest.mark.parametrize("version", [0, 1.0, 2.0, 3.0])
def test_every_version_and_spelling(reference, version, names):
    found = read(release_format.checkpoint(reference, version, names=names))
    assert largest_difference(found, reference) == 0
    assert not missing(found, reference)
    assert found.fine_tuned is None
    assert found.config == {
        "vocabulary_size": 128,
        "num_layers": 3,
        "num_heads": 4,
        "hidden_dim": 32,
        "intermediate_dim": 48,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "max_sequence_length": 24,
        "num_segments": 2,
        "layer_norm_epsilon": 1e-5,
        "activation": "gelu",
        "apply_residual_connection_post_layernorm": False,
    }


@pytest.mark.parametrize(
    ("stored", "read_as"), [(1.0, 0), (2.0, 0), (0, 1.0), (0, 2.0), (2.0, 1.0)]
)
def test_another_version_scrambles_the_attention(reference, stored, read_as):
    state = release_format.checkpoint(reference, stored)
    state["checkpoint_version"] = read_as
    assert largest_difference(read(state), reference) > 0.3


def test_another_number_of_heads_scrambles_the_attention(reference):
    found = read(release_format.checkpoint(reference, 2.0), num_heads=8)
    assert largest_difference(found, reference) > 0.3


def test_half_precision(reference):
    found = read(release_format.checkpoint(reference, half=True))
    assert {tensor.dtype for tensor in found.weights.values()} == {np.dtype("f2")}
    assert 0 < largest_difference(found, reference) < 2e-3


def test_without_binary_head_token_types_or_pooler(reference):
    state = release_format.checkpoint(reference, binary_head=False, token_types=False)
    del state["model"]["language_model"]["pooler"]
    found = read(state)
    gone = {key for key in missing(found, reference) if "seq_relationship" not in key}
    assert gone == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    segments = found.weights.pop("bert.embeddings.token_type_embeddings.weight")
    np.testing.assert_array_equal(segments.read(), np.zeros((2, 32)))
    assert largest_difference(found, reference) == 0
    assert any("token-type" in note for note in found.notes)
    assert any("no pooler" in note for note in found.notes)


def test_the_tied_copy_must_be_one(reference):
    state = release_format.checkpoint(reference)
    words = state["model"]["language_model"]["embedding"]["word_embeddings"]["weight"]
    state["model"]["word_embeddings_for_head"] = {"weight": words.clone()}
    assert largest_difference(read(state), reference) == 0
    state["model"]["word_embeddings_for_head"]["weight"][5, 5] += 1
    with one_line_error("word_embeddings_for_head.weight", "tied"):
        read(state)


# === Settings ===


@pytest.mark.parametrize(
    ("arguments", "options", "expected", "note"),
    [
        ({}, {}, {"num_heads": 4, "layer_norm_epsilon": 1e-5, "activation": "gelu"}, "before"),
        ({"layernorm_epsilon": 1e-6}, {}, {"layer_norm_epsilon": 1e-6}, "1e-06 (by the"),
        ({"norm_epsilon": 1e-7}, {}, {"layer_norm_epsilon": 1e-7}, "1e-07 (by the"),
        (
            {"layernorm_epsilon": 1e-6},
            {"layer_norm_epsilon": 1e-12},
            {"layer_norm_epsilon": 1e-12},
            "asked",
        ),
        (
            {"bias_gelu_fusion": True},
            {},
            {"activation": "gelu_approximate"},
            "with bias_gelu_fusion), of the head gelu",
        ),
        ({"bias_gelu_fusion": False}, {}, {"activation": "gelu"}, "without bias_gelu"),
        (
            {"openai_gelu": True},
            {},
            {"activation": "gelu_approximate"},
            "openai_gelu), of the head gelu_approximate",
        ),
        ({"bias_gelu_fusion": True}, {"mlp_activation": "gelu"}, {"activation": "gelu"}, "asked"),
        ({}, {"num_heads": 2}, {"num_heads": 2}, "2 attention heads (as asked"),
        ({"num_attention_heads": np.int64(8)}, {}, {"num_heads": 8}, "8 attention heads (by"),
        ({"hidden_dropout": 0.0}, {}, {"dropout": 0.0, "attention_dropout": 0.1}, ""),
    ],
)
def test_settings(reference, arguments, options, expected, note):
    found = read(release_format.checkpoint(reference, arguments=arguments), **options)
    assert found.config.items() >= expected.items()
    assert any(note in line for line in found.notes)


def test_heads_without_arguments_are_64_wide():
    model = make_reference(hidden_size=128, num_attention_heads=2, num_hidden_layers=1)
    state = release_format.checkpoint(model, 2.0)
    del state["args"]
    found = read(state)
    assert found.config["num_heads"] == 2
    assert largest_difference(found, model) == 0
    state = release_format.checkpoint(make_reference(num_hidden_layers=1))
    state["args"] = argparse.Namespace()
    with one_line_error("--num-heads", "hidden size 32"):
        read(state)


@pytest.mark.parametrize(
    ("arguments", "options", "parts"),
    [
        ({"swiglu": True}, {}, ["swiglu"]),
        ({"normalization": "RMSNorm"}, {}, ["normalization=RMSNorm"]),
        ({"model_parallel_size": 2}, {}, ["model_parallel_size=2", "mp_rank_01 is missing"]),
        ({"tensor_model_parallel_size": 8}, {}, ["tensor_model_parallel_size=8", "8 shards"]),
        ({"pipeline_model_parallel_size": 4}, {}, ["pipeline_model_parallel_size=4", "4 shards"]),
        ({"tensor_model_parallel_size": 0}, {}, ["tensor_model_parallel_size=0"]),
        ({"tensor_model_parallel_size": 10**9}, {}, ["tensor_model_parallel_size=1e+09"]),
        ({"group_query_attention": True}, {}, ["group_query_attention"]),
        ({"position_embedding_type": "rope"}, {}, ["position_embedding_type=rope"]),
        ({"num_layers": 6}, {}, ["3 layers", "6"]),
        ({"num_attention_heads": 5}, {}, ["5", "32", "--num-heads"]),
        ({"num_attention_heads": "many"}, {}, ["num_attention_heads"]),
        ({"num_attention_heads": 10**400}, {}, ["num_attention_heads"]),
        ({"num_attention_heads": float("nan")}, {}, ["num_attention_heads"]),
        ({"hidden_dropout": 1.5}, {}, ["hidden_dropout", "1.5"]),
        ({}, {"num_heads": 0}, ["0 attention heads"]),
        ({}, {"num_heads": 3}, ["3 attention heads", "32"]),
        ({}, {"layer_norm_epsilon": 0.0}, ["epsilon", "0"]),
        ({}, {"mlp_activation": "relu"}, ["relu", "gelu_approximate"]),
    ],
)
def test_settings_that_are_refused(reference, arguments, options, parts):
    with one_line_error(*parts):
        read(release_format.checkpoint(reference, arguments=arguments), **options)


# === Keys and shapes ===


def change(state, path, value=None):
    """Sets the tensor at a path of keys, or removes it."""
    *folders, name = path.split("/")
    for folder in folders:
        state = state[folder]
    if value is None:
        del state[name]
    else:
        state[name] = value


LAYERS = "model/language_model/transformer"
QKV = "layers.1.attention.query_key_value"


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("model/language_model/embedding/word_embeddings/weight", None, ["lacks", "word_emb"]),
        ("model/language_model/embedding/position_embeddings", None, ["lacks", "position_emb"]),
        (f"{LAYERS}/{QKV}.bias", None, ["lacks", f"{QKV}.bias"]),
        (f"{LAYERS}/layers.2.mlp.dense_4h_to_h.weight", None, ["lacks"]),
        (f"{LAYERS}/final_layernorm.bias", None, ["final_layernorm.bias"]),
        ("model/language_model/pooler/dense.bias", None, ["pooler.dense.bias"]),
        ("model/lm_head/bias", None, ["lacks", "lm_head.bias"]),
        ("model/lm_head", None, ["lacks", "lm_head"]),
        ("model/lm_head/extra", torch.zeros(3), ["lm_head.extra"]),
        (f"{LAYERS}/layers.1.mlp.gate.weight", torch.zeros(3), ["mlp.gate"]),
        (f"{LAYERS}/layers.7.ln.weight", torch.zeros(3), ["numbered"]),
        ("model/language_model/encoder", {"final_norm.bias": torch.zeros(32)}, ["two spellings"]),
        (f"{LAYERS}/{QKV}.weight", torch.zeros(95, 32), ["(95, 32)", "(96, 32)"]),
        (f"{LAYERS}/layers.0.input_layernorm.weight", torch.zeros(33), ["(33,)"]),
        ("model/lm_head/dense.weight", torch.zeros(32, 31), ["(32, 31)", "(32, 32)"]),
        ("model/lm_head/bias", torch.zeros(127), ["(127,)", "(128,)"]),
        ("model/lm_head/bias", torch.zeros(128, dtype=torch.int64), ["int64", "lm_head.bias"]),
        ("model/lm_head/bias", [1.0], ["lm_head.bias", "no tensor"]),
        ("model/language_model/embedding/word_embeddings/weight", torch.zeros(4), ["(4,)"]),
        ("model/language_model/embedding/word_embeddings/weight", torch.zeros(0, 32), ["(0, 32)"]),
        ("model", None, ["no 'model'"]),
        ("checkpoint_version", 0.5, ["0.5"]),
        ("checkpoint_version", -1, ["-1"]),
        ("checkpoint_version", "2", ["checkpoint_version"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(reference, path, value, parts):
    state = release_format.checkpoint(reference)
    change(state, path, value)
    with one_line_error(*parts):
        read(state)


def test_a_bomb_of_nested_dictionaries_is_refused():
    bomb = {}
    for _ in range(7):
        bomb = {str(i): bomb for i in range(100)}
    with one_line_error("entries"):
        read({"model": bomb})


def test_extra_states_are_ignored(reference):
    state = release_format.checkpoint(reference)
    state["model"]["lm_head"]["dense._extra_state"] = None
    state["model"]["lm_head"]["norm._extra_state"] = io.BytesIO(b"of Transformer Engine")
    assert not missing(read(state), reference)
