"""What an export writes: its graph, versions and precisions, and what it refuses."""

import os
import pathlib
import sys

import keras
import keras_hub
import numpy as np
import pytest
import requests
import tensorflow as tf
from comparing import ask
from models import small_backbone
from server_process import running_server
from serving_models import CASES, make, random_inputs

from keras_megatron import (
    MegatronBertBackbone,
    MegatronBertCausalLM,
    MegatronBertTextClassifier,
    serving,
)
from keras_megatron.cli import main
from keras_megatron.presets.stored_task import is_quantized
from keras_megatron.serving.graph_check import check_graph, graph_operations, paths_in

TEXTS = CASES["TextClassifier"].x
tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="in-process on TensorFlow"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A classifier, and what its export says."""
    model = make("TextClassifier")
    return model, serving.export(model, tmp_path_factory.mktemp("exports") / "classifier")


# === What is inside ===


def test_the_graph_has_operations_of_tensorflow_and_no_path(exported, monkeypatch):
    _, export = exported
    assert export.operations == graph_operations(export.folder)
    assert {"MatMul", "FastWordpieceTokenizeWithOffsets"} <= set(export.operations)
    assert not {name for name in export.operations if "Py" in name or "Xla" in name}
    assert paths_in(export.folder) == []
    spoiled = export.folder / "assets" / "note"  # the control
    spoiled.parent.mkdir(exist_ok=True)
    spoiled.write_text(f"made by {pathlib.Path(serving.__file__).parents[2]}/tool")
    assert paths_in(export.folder)
    spoiled.unlink()
    monkeypatch.setattr(os, "getcwd", lambda: "/classifier")  # as is part of operations' names
    assert paths_in(export.folder) == []


@tensorflow_only
def test_python_in_a_graph_is_refused(tmp_path):
    module = tf.Module()
    module.answer = tf.function(
        lambda x: tf.numpy_function(np.sin, [x], tf.float32),
        input_signature=[tf.TensorSpec([None], tf.float32)],
    )
    tf.saved_model.save(module, str(tmp_path), signatures=module.answer)
    with pytest.raises(ValueError, match="TensorFlow Serving lacks: PyFunc"):
        check_graph(tmp_path)


@tensorflow_only
def test_nothing_in_a_graph_needs_xla(tmp_path):
    model = make("CausalLM")  # keras.ops.slice_update would
    export = serving.export(model, tmp_path / "model", warmup=False)
    assert "TensorStridedSliceUpdate" in export.operations
    assert not {name for name in export.operations if name.startswith("Xla")}
    module = tf.Module()
    module.answer = tf.function(
        lambda x: keras.ops.slice_update(x, [0], x[:1]),
        input_signature=[tf.TensorSpec([None], tf.float32)],
    )
    tf.saved_model.save(module, str(tmp_path), signatures=module.answer)
    with pytest.raises(ValueError, match="TensorFlow Serving lacks: XlaDynamicUpdateSlice"):
        check_graph(tmp_path)


@tensorflow_only
def test_a_server_warms_up_and_answers(exported):
    model, export = exported
    assert export.folder.name == "1"
    with running_server(export.folder.parent) as server:
        assert server.warmup_requests == 6  # two for each signature
        answer = requests.post(f"{server.model_url}:predict", json={"inputs": {"text": TEXTS}})
    expected = [row["score"] for row in model.classify(TEXTS)]
    np.testing.assert_allclose(answer.json()["outputs"]["score"], expected, atol=2e-5)


# === Precisions, versions, errors ===


@tensorflow_only
@pytest.mark.parametrize(("precision", "most"), [("bfloat16", 0.05), ("int8", 0.1)])
def test_lower_precisions_are_smaller_and_close(exported, tmp_path, precision, most):
    model, full = exported
    export = serving.export(model, tmp_path / "model", precision=precision, warmup=False)
    scores = ask(export.folder, text=TEXTS)["scores"]
    assert 1e-6 < np.abs(scores - ask(full.folder, text=TEXTS)["scores"]).max() < most
    sizes = [
        (folder / "variables/variables.data-00000-of-00001").stat().st_size
        for folder in (export.folder, full.folder)
    ]
    assert sizes[0] < 0.75 * sizes[1]


@tensorflow_only
def test_a_quantized_model_is_exported_as_it_is(tmp_path):
    model = make("TextClassifier")
    model.quantize("int8")
    model.save_to_preset(tmp_path / "preset")
    assert is_quantized(str(tmp_path / "preset"))
    int4 = make("TextClassifier")
    int4.quantize("int4")
    for quantized, other in ((model, "float32"), (int4, "int8")):
        with pytest.raises(ValueError, match="quantized weights: export it as it is"):
            serving.export(quantized, tmp_path / "model", precision=other)
    assert not (tmp_path / "model").exists()
    export = serving.export(model, tmp_path / "model", warmup=False)
    expected = [answer["score"] for answer in model.classify(TEXTS)]
    np.testing.assert_allclose(ask(export.folder, text=TEXTS)["score"], expected, atol=2e-5)


@tensorflow_only
def test_a_backbone_and_versions(tmp_path):
    backbone = MegatronBertBackbone(30, 1, 2, 8, 16)
    for version in ("1", "2"):
        export = serving.export(backbone, tmp_path / "model", warmup=False)
        assert export.folder == tmp_path / "model" / version
    assert set(export.signatures) == {"serving_default", "tensors"}
    inputs = random_inputs(np.random.default_rng(0), backbone, 2, 9)
    served = ask(export.folder, **inputs)
    for name, array in backbone(inputs).items():
        np.testing.assert_allclose(served[name], array, atol=2e-5)


@tensorflow_only
def test_the_command(tmp_path, capsys):
    make("MaskedLM").save_to_preset(tmp_path / "preset")
    arguments = ["export", "--preset", str(tmp_path / "preset"), str(tmp_path / "served")]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--top-k", "3"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"wrote {tmp_path / 'served' / '1'}"
    assert "serving_default: text -> masks, scores, token_ids, tokens" in printed
    assert printed[-1].startswith("operations: ")
    assert "MatMul" in printed[-1]
    served = ask(tmp_path / "served" / "1", text=["it [MASK] the"])
    assert served["tokens"].shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "pickle"}, "format must be one of saved_model, onnx, openvino, not 'pickle'"),
        ({"precision": "int2"}, "precision must be one of float32, bfloat16, int8, not 'int2'"),
        ({"top_k": 0}, "top_k must be an integer of at least 1, not 0"),
        ({"max_length": 1}, "max_length must be an integer of at least 2, not 1"),
        ({"batch": 3}, "unknown option 'batch': known are"),
        (
            {"top_k": 3},
            "top_k is for MegatronBertMaskedLM and MegatronBertPretrainer, not for "
            "MegatronBertBackbone",
        ),
        ({"pairs": True}, "pairs is for MegatronBertTextClassifier, not for MegatronBertBackbone"),
        ({"format": "onnx", "max_length": 8}, "max_length is for a SavedModel, which answers to"),
    ],
)
def test_errors(tmp_path, options, message):
    model = MegatronBertBackbone(30, 1, 2, 8, 16)
    with pytest.raises(ValueError, match=message):
        serving.export(model, tmp_path / "model", **options)
    assert list(tmp_path.iterdir()) == []


class OwnSampler(keras_hub.samplers.GreedySampler):
    """Which no process of an export knows."""


class OwnClassifier(MegatronBertTextClassifier):
    """Which is no class of this package."""


def _error_of(model, folder, message: str, **options) -> None:
    with pytest.raises(ValueError, match=message):
        serving.export(model, folder / "model", warmup=False, **options)
    assert not (folder / "model").exists()


@tensorflow_only
def test_models_that_cannot_be_served(tmp_path):
    generator = make("CausalLM")
    _error_of(generator, tmp_path, "must be at most 40, the model's positions", max_length=41)
    generator.compile(sampler=OwnSampler())
    _error_of(generator, tmp_path, "the sampler OwnSampler is none of KerasHub's")
    answerer = make("QuestionAnswering")
    answerer.preprocessor.sequence_length = 50
    _error_of(answerer, tmp_path, "50 tokens but the model has 40 positions")
    _error_of(OwnClassifier(generator.backbone, 2), tmp_path, "not of OwnClassifier")
    _error_of(keras.Sequential(), tmp_path, "not of Sequential")
    (tmp_path / "loop").symlink_to("loop")
    _error_of(generator.backbone, tmp_path / "loop", r"cannot read .*loop")


@tensorflow_only
def test_a_decoder_of_an_encoder_takes_tensors(tmp_path):
    backbone = small_backbone(vocabulary_size=40, num_layers=1, cross_attention=True)
    model = MegatronBertCausalLM(backbone, make("CausalLM").preprocessor, compile=False)
    export = serving.export(model, tmp_path / "model")
    assert set(export.signatures) == {"serving_default", "tensors"}
    inputs = random_inputs(np.random.default_rng(0), backbone, 2, 7)
    expected = model.logits(inputs)
    np.testing.assert_allclose(ask(export.folder, **inputs)["logits"], expected, atol=2e-5)


@tensorflow_only
def test_what_is_missing_or_in_the_way(tmp_path, monkeypatch):
    model = MegatronBertBackbone(30, 1, 2, 8, 16)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*file"):
        serving.export(model, file, warmup=False)
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(ValueError, match=r"pip install 'keras-megatron\[serving\]'"):
        serving.export(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
