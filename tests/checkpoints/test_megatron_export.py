"""Checkpoints that are written, next to those that `sharded_format` makes of the same weights."""

import argparse
import json

import numpy as np
import pytest
import release_format
import sharded_format
import torch
from checkpoint_helpers import make_reference, one_line_error, tree

from keras_megatron import (
    MegatronBertBackbone,
    MegatronBertMaskedLM,
    MegatronBertMultipleChoice,
    MegatronBertPretrainer,
    MegatronBertTextClassifier,
    MegatronBertTokenClassifier,
    MegatronBertTokenizer,
)
from keras_megatron.checkpoints import convert_checkpoint
from keras_megatron.checkpoints.megatron import read_megatron
from keras_megatron.checkpoints.sources import open_checkpoint
from keras_megatron.checkpoints.torch_file_writer import save_torch_file
from keras_megatron.checkpoints.vocabulary_rows import cut_padding

GRIDS = [(t, *p) for t in (1, 2, 4, 8) for p in ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2))]
SIZES = {"num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 64}
FILE = "release/mp_rank_00/model_optim_rng.pt"


@pytest.fixture(scope="module")
def reference():
    return make_reference(**SIZES)


@pytest.fixture(scope="module")
def model(reference, vocabulary, tmp_path_factory):
    """The reference's weights in Keras, with a tokenizer of 100 pieces."""
    folder = tmp_path_factory.mktemp("reference")
    reference.save_pretrained(folder)
    return with_weights_of(folder, MegatronBertPretrainer, vocabulary)


def with_weights_of(folder, cls, vocabulary, **arguments):
    tokenizer = MegatronBertTokenizer(str(vocabulary))
    preprocessor = cls.preprocessor_cls(tokenizer, sequence_length=24)
    return cls.from_preset(str(folder), preprocessor=preprocessor, **arguments)


def load(path):
    return torch.load(path, weights_only=False)


def export(model, folder, version=3.0, tensor=1, pipeline=1, virtual=1, **options):
    layout = {"tensor_parallel": tensor, "pipeline_parallel": pipeline}
    model.export_to_megatron(folder, **layout, virtual_pipeline=virtual, version=version, **options)
    return folder


def flat(state, prefix=""):
    found = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{key}/"))
        else:
            found[prefix + key] = value
    return found


def different(written, expected, rank, tensor_size):
    """Names that are not, bit by bit, the reference's; rows that pad the vocabulary aside."""
    written, expected = flat(written), flat(expected)
    assert written.keys() == expected.keys()
    kept = max(0, min(128, 128 - rank * 128))  # rows of each rank; all but the first one's pad
    found = set()
    for name, tensor in written.items():
        rows = kept if "word_embeddings" in name or name == "lm_head/bias" else None
        assert tensor.shape == expected[name].shape
        if not torch.equal(tensor[:rows], expected[name][:rows]):
            found.add(name)
    return found


@pytest.mark.backend_independent
@pytest.mark.parametrize("version", [0.0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "TP{} PP{} VP{}".format(*grid))
def test_every_grid_and_version(tmp_path, reference, model, grid, version):
    """What is written is what Megatron-LM's layout has, and is read back bit by bit."""
    folder = export(model, tmp_path / "out", version, *grid)
    names = release_format.LATER_NAMES if version == 3 else release_format.OLD_NAMES
    expected = sharded_format.shards(reference, version, *grid, names=names)
    for (rank, stage), content in expected.items():
        place = sharded_format.rank_folder(rank, stage, grid[1])
        written = load(folder / "release" / place / "model_optim_rng.pt")
        assert written.get("checkpoint_version", 0) == version
        models = {key for key in content if key.startswith("model")}
        assert models == {key for key in written if key.startswith("model")}
        for key in models:
            assert different(written[key], content[key], rank, grid[0]) == set()
    files = [name for name in tree(folder) if name.endswith(".pt")]
    assert len(files) == len(expected)
    back = cut_padding(read_megatron(open_checkpoint(folder, tmp_path)), 100)
    assert back.config == {**back.config, "num_layers": 8, "num_heads": 8, "vocabulary_size": 128}
    weights = reference.state_dict()
    for name, array in back.weights.items():
        np.testing.assert_array_equal(array.read(), weights[name].numpy(), strict=True)


@pytest.mark.backend_independent
def test_another_version_or_rank_shows(tmp_path, reference, model):
    """Negative controls of the comparison."""
    folder = export(model, tmp_path / "out", 3.0, 2)
    written = load(folder / FILE)["model"]
    for version, rank in ((1.0, 0), (3.0, 1)):
        expected = sharded_format.shards(reference, version, 2, names=release_format.LATER_NAMES)
        changed = different(written, expected[rank, 0]["model"], rank, 2)
        assert any("query_key_value" in name for name in changed)


@pytest.mark.backend_independent
def test_rows_that_pad_have_no_probability(tmp_path, model):
    export(model, tmp_path / "out", 3.0, 4)
    for rank in (1, 3):
        last = load(tmp_path / "out" / FILE.replace("00", f"{rank:02d}"))["model"]
        words = last["language_model"]["embedding"]["word_embeddings"]["weight"]
        assert words.shape == (128, 32)
        assert not words.any()
        assert (last["lm_head"]["bias"] == -1e4).all()


@pytest.mark.backend_independent
def test_rows_that_stand_for_no_piece_are_cut(tmp_path, vocabulary):
    reference = make_reference(vocab_size=512, num_hidden_layers=1)
    reference.save_pretrained(tmp_path / "reference")
    model = with_weights_of(tmp_path / "reference", MegatronBertMaskedLM, vocabulary)
    for tensor, rows in ((1, 128), (2, 256)):
        folder = export(model, tmp_path / f"{tensor}", tensor=tensor)
        assert load(folder / FILE)["args"].padded_vocab_size == rows
        words = load(folder / FILE)["model"]["language_model"]["embedding"]["word_embeddings"]
        expected = reference.bert.embeddings.word_embeddings.weight[:128]
        assert torch.equal(words["weight"], expected)


def test_megatron_to_keras_to_megatron(tmp_path, reference, vocabulary):
    """Of a checkpoint of two by two ranks, every tensor is unchanged, bit by bit."""
    names = release_format.LATER_NAMES
    found = sharded_format.shards(reference, 3.0, 2, 2, names=names)
    sharded_format.write_shards(tmp_path / "source" / "release", found)
    convert_checkpoint(tmp_path / "source", tmp_path / "preset", vocabulary, progress=False)
    model = MegatronBertPretrainer.from_preset(str(tmp_path / "preset"))
    folder = export(model, tmp_path / "back", 3.0, 2, 2)
    for rank, stage in found:
        place = sharded_format.rank_folder(rank, stage, 2)
        written = load(folder / "release" / place / "model_optim_rng.pt")
        assert different(written["model"], found[rank, stage]["model"], rank, 2) == set()


@pytest.mark.backend_independent
def test_arguments_that_megatron_lm_compares(tmp_path, model):
    """Those of `check_checkpoint_args` and `load_args_from_checkpoint`."""
    folder = export(model, tmp_path / "out", 3.0, 2, 4, 2)
    content = load(folder / "release" / "mp_rank_01_003" / "model_optim_rng.pt")
    arguments = content["args"]
    assert isinstance(arguments, argparse.Namespace)
    expected = {
        "num_layers": 8,
        "hidden_size": 32,
        "ffn_hidden_size": 64,
        "num_attention_heads": 8,
        "kv_channels": 4,
        "max_position_embeddings": 24,
        "make_vocab_size_divisible_by": 128,
        "padded_vocab_size": 256,
        "tokenizer_type": "BertWordPieceLowerCase",
        "model_parallel_size": 2,
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 4,
        "virtual_pipeline_model_parallel_size": 2,
        "num_layers_per_virtual_pipeline_stage": 1,
        "layernorm_epsilon": 1e-5,
        "bias_gelu_fusion": False,
        "bert_binary_head": True,
        "apply_residual_connection_post_layernorm": False,
    }
    assert {name: getattr(arguments, name) for name in expected} == expected
    assert content["iteration"] == 0
    assert (folder / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert len((folder / "vocab.txt").read_text().split()) == 100


@pytest.mark.parametrize(
    ("activation", "head"),
    [("gelu", "gelu"), ("gelu_approximate", "gelu"), ("gelu_approximate", "gelu_approximate")],
)
def test_settings_come_back(tmp_path, activation, head):
    backbone = MegatronBertBackbone(
        128,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=8,
        head_dim=12,
        activation=activation,
        layer_norm_epsilon=1e-7,
        dropout=0.25,
        attention_dropout=0.0,
        apply_residual_connection_post_layernorm=True,
    )
    model = MegatronBertMaskedLM(backbone, head_activation=head)
    export(model, tmp_path / "out", 2.0, 2)
    back = read_megatron(open_checkpoint(tmp_path / "out", tmp_path))
    config = {**backbone.get_config(), "vocabulary_size": 256}
    assert back.config == {name: config[name] for name in back.config}
    assert back.config["head_dim"] == 12
    assert back.head_activation == head


@pytest.mark.parametrize(
    ("cls", "architecture", "head"),
    [
        (MegatronBertTextClassifier, "SequenceClassification", "classification_head"),
        (MegatronBertMultipleChoice, "MultipleChoice", "multichoice_head"),
    ],
)
def test_heads_of_fine_tuning(tmp_path, vocabulary, cls, architecture, head):
    reference = make_reference(f"MegatronBertFor{architecture}", num_labels=3)
    reference.save_pretrained(tmp_path / "reference")
    model = with_weights_of(tmp_path / "reference", cls, vocabulary)
    written = load(export(model, tmp_path / "out", 3.0, 2) / FILE)["model"]
    assert written.keys() == {"language_model", head}
    for kind in ("weight", "bias"):
        assert torch.equal(written[head][kind], getattr(reference.classifier, kind))
    convert_checkpoint(tmp_path / "out", tmp_path / "preset", vocabulary, progress=False)
    back = cls.from_preset(str(tmp_path / "preset"))
    for ours, theirs in zip(back.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_half_precision_stays(tmp_path, vocabulary):
    reference = make_reference(num_hidden_layers=1).half()
    reference.save_pretrained(tmp_path / "reference")
    folder = tmp_path / "reference"
    model = with_weights_of(folder, MegatronBertMaskedLM, vocabulary, dtype="float16")
    written = load(export(model, tmp_path / "out") / FILE)["model"]
    dense = written["lm_head"]["dense.weight"]
    assert dense.dtype == torch.float16
    assert torch.equal(dense, reference.cls.predictions.transform.dense.weight)


# === What cannot be written ===


def small(cls=MegatronBertMaskedLM, head_activation=None, num_classes=None, **options):
    sizes = {"hidden_dim": 16, "intermediate_dim": 24, "max_sequence_length": 8, **options}
    of_head = {"head_activation": head_activation, "num_classes": num_classes}
    of_head = {name: value for name, value in of_head.items() if value is not None}
    return cls(MegatronBertBackbone(64, 2, 2, **sizes), **of_head)


@pytest.mark.parametrize(
    ("model", "layout", "parts"),
    [
        (small, {"tensor_parallel": 4}, ("2 attention heads", "4 tensor ranks")),
        (small, {"pipeline_parallel": 4}, ("2 layers", "4 chunks")),
        (small, {"tensor_parallel": 0}, ("tensor_parallel=0", "at least 1")),
        (small, {"tensor_parallel": 2.0}, ("tensor_parallel=2.0",)),
        (small, {"virtual_pipeline": 2}, ("virtual_pipeline=2", "pipeline_parallel")),
        (small, {"version": 4.0}, ("version=4.0", "3.0")),
        (small, {"version": 0.0, "core": True}, ("version=0.0", "Megatron-core")),
        (small, {"transformer_engine": True}, ("transformer_engine",)),
        (lambda: small(num_segments=3), {}, ("2 segments", "3")),
        (
            lambda: small(apply_residual_connection_post_layernorm=True),
            {"core": True},
            ("Megatron-core", "apply_residual_connection_post_layernorm"),
        ),
        (lambda: small(activation="relu"), {}, ("'relu'",)),
        (
            lambda: small(head_activation="gelu_approximate", activation="gelu_approximate"),
            {"core": True},
            ("Megatron-core", "gelu_approximate"),
        ),
        (
            lambda: small(MegatronBertTokenClassifier, num_classes=3),
            {},
            ("MegatronBertTokenClassifier", "MegatronBertMaskedLM"),
        ),
        (
            lambda: small(MegatronBertTextClassifier, num_classes=3),
            {"core": True},
            ("Megatron-core", "classification_head"),
        ),
    ],
)
def test_what_cannot_be_written(tmp_path, empty, model, layout, parts):
    with one_line_error(*parts):
        model().export_to_megatron(empty, **layout)
    assert tree(tmp_path) == ["empty"]


def test_lora_has_no_place(tmp_path):
    model = small()
    model.backbone.enable_lora(2)
    with one_line_error("lora"):
        model.export_to_megatron(tmp_path / "out")
    assert tree(tmp_path) == []


@pytest.mark.backend_independent
def test_an_unknown_layout_is_a_type_error(tmp_path):
    with pytest.raises(TypeError, match="tensor_ranks"):
        small().export_to_megatron(tmp_path / "out", tensor_ranks=2)


# === The file's format ===


@pytest.mark.backend_independent
def test_plain_values_as_torch_reads_them(tmp_path):
    content = {
        "numbers": [0, -1, 2**31 - 1, 2**31, -(2**31), -(2**40), 2**70, 1.5, -0.0, float("inf")],
        "others": (None, True, False, "", "ü\n", {}, [], ()),
        "nested": {1: {"a": [({},)]}},
    }
    save_torch_file(tmp_path / "file.pt", content)
    assert load(tmp_path / "file.pt") == content
    assert json.dumps(load(tmp_path / "file.pt")["numbers"]) == json.dumps(content["numbers"])
    with pytest.raises(TypeError, match="set"):
        save_torch_file(tmp_path / "other.pt", {"a": set()})
