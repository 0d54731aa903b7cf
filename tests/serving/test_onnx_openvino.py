"""ONNX and OpenVINO files give a model's own numbers, for every task and any sizes."""

import functools
import os
import pathlib
import sys
import tempfile
from collections import Counter

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from huggingface import largest_difference
from models import randomize, small_backbone
from runtime_files import (
    LAYERS,
    OUTPUTS,
    TASKS,
    error,
    expected,
    make,
    run,
    samples,
    small_model,
    written,
)

import keras_megatron
from keras_megatron.serving import onnx_graph
from keras_megatron.serving.onnx_format import write_onnx
from keras_megatron.serving.openvino_format import write_openvino

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow")


# Batch, sequence and masks; the model has 40 positions.
SIZES = [(4, 17, 3), (1, 6, 1), (3, 40, 7)]
ACTIVATIONS = [
    "elu",
    "exponential",
    "gelu",
    "gelu_approximate",
    "hard_sigmoid",
    "hard_silu",
    "leaky_relu",
    "linear",
    "log_softmax",
    "mish",
    "relu",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "softsign",
    "tanh",
]

every_task = pytest.mark.parametrize("name", TASKS)
both = pytest.mark.parametrize("format", ["onnx", "openvino"])


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """Write each small model once for a format and a precision."""

    @functools.cache
    def write(name: str, format: str, precision: str = "float32") -> pathlib.Path:
        folder = tmp_path_factory.mktemp(f"{name}_{format}_{precision}") / "new"
        return written(small_model(name), folder, format, precision)

    return write


@both
@every_task
def test_every_task_at_any_sizes(name, format, small_file):
    model, path = small_model(name), small_file(name, format)
    for size in SIZES:
        inputs = samples(model, *size)
        found = run(path, inputs)
        assert sorted(found) == sorted(OUTPUTS.get(name, ["logits"]))
        assert error(path, model, inputs) < 2e-5
    # Negative controls, with the last sizes: the mask left out, segments changed, tokens changed.
    for other in (
        {"padding_mask": np.ones_like(inputs["padding_mask"])},
        {"segment_ids": 1 - inputs["segment_ids"]},
        {"token_ids": (inputs["token_ids"] + 1) % 131},
    ):
        assert error(path, model, inputs, answered={**inputs, **other}) > 1e-3


@both
def test_padding_changes_nothing_and_a_row_of_it_is_no_nan(format, small_file):
    model, path = small_model("TextClassifier"), small_file("TextClassifier", format)
    inputs = samples(model, 4, 17)
    padded = {key: np.pad(array, ((0, 2), (0, 9))) for key, array in inputs.items()}
    logits = run(path, padded)["logits"]
    assert largest_difference(logits[:4], run(path, inputs)["logits"]) < 2e-5
    assert largest_difference(logits, expected(model, padded)["logits"]) < 2e-5


@both
@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_pooling(pooling, normalize, format, tmp_path):
    encoder = small_backbone(num_layers=1)
    model = keras_megatron.MegatronBertTextEmbedder(encoder, None, pooling, normalize)
    randomize(model)
    inputs = samples(model, 4, 17)
    inputs["padding_mask"][1] = 0
    assert error(written(model, tmp_path, format), model, inputs) < 2e-5


@both
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("CausalLM", {"cross_attention": True}),
        ("Backbone", {"cross_attention": True, "head_dim": 7}),
        ("MaskedLM", {"layer_norm_epsilon": 1e-2, "num_segments": 3, "activation": "silu"}),
        ("CausalLM", {"cross_attention": True, "apply_residual_connection_post_layernorm": True}),
    ],
)
def test_other_architectures(name, settings, format, tmp_path):
    model = make(name, **settings)
    assert error(written(model, tmp_path, format), model, samples(model, 3, 11)) < 2e-5


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, tmp_path):
    model = make("Backbone", num_layers=1, activation=activation)
    inputs = samples(model, 2, 9)
    for format in ("onnx", "openvino"):
        assert error(written(model, tmp_path, format), model, inputs) < 2e-5
    # Negative control: the parity above is no accident of a block that does little.
    control = "tanh" if activation == "softsign" else "softsign"
    other = make("Backbone", num_layers=1, activation=control)
    wanted = expected(model, inputs)["sequence_output"]
    assert largest_difference(expected(other, inputs)["sequence_output"], wanted) > 1e-4


def test_lora_is_merged(tmp_path):
    model = make("MaskedLM")
    before = written(model, tmp_path / "before", "onnx")
    model.backbone.enable_lora(2)
    randomize(model, seed=1)
    inputs = samples(model, 3, 11)
    assert error(written(model, tmp_path / "after", "onnx"), model, inputs) < 2e-5
    assert error(before, model, inputs) > 1e-2  # negative control


@both
@every_task
def test_int8_is_near(name, format, small_file):
    model = small_model(name)
    inputs = samples(model, 4, 17)
    rounded = error(small_file(name, format, "int8"), model, inputs)
    scale = max(array.std() for array in expected(model, inputs).values())
    if name == "MultipleChoice":  # a choice that is not there has -1e4
        scale = expected(model, inputs)["logits"].max()
    assert 1e-5 < rounded < 0.15 * scale


@pytest.mark.parametrize("precision", ["float32", "int8"])
@both
def test_embedded_model(precision, format, tmp_path):
    preset = "megatron_bert_tiny_uncased"
    model = keras_megatron.MegatronBertMaskedLM.from_preset(preset, dtype="float32")
    texts = ["In the beginning God created the heaven and the [MASK].", "The [MASK] of England."]
    inputs = model.preprocessor.tokenizer.encode(texts, sequence_length=24)
    masks = np.argmax(inputs["token_ids"] == model.preprocessor.tokenizer.mask_token_id, axis=1)
    inputs = {**inputs, "mask_positions": masks[:, None].astype("int32")}
    inputs = {key: np.asarray(inputs[key], "int32") for key in model.input}
    path = written(model, tmp_path, format, precision)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    whole = 4 * model.count_params()
    wanted = expected(model, inputs)["logits"]
    if precision == "float32":
        assert error(path, model, inputs) < 5e-5
        assert 0.98 * whole < size < 1.02 * whole  # the tied table once
    else:
        difference = run(path, inputs)["logits"] - wanted
        assert 1e-4 < difference.std() < 0.04 * wanted.std()
        assert size < 0.27 * whole


def test_bfloat16_of_openvino(small_file):
    model, path = small_model("MaskedLM"), small_file("MaskedLM", "openvino", "bfloat16")
    exact = small_file("MaskedLM", "openvino")
    inputs = samples(model, 4, 17)
    assert 1e-5 < error(path, model, inputs) < 5e-3  # weights of 11 bits
    assert error(path, model, inputs) < error(path, model, inputs, hint="bf16") < 0.1
    size, half = (file.with_suffix(".bin").stat().st_size for file in (exact, path))
    assert half < 0.55 * size


@both
def test_too_long_a_sequence_is_an_error(format, small_file):
    model, path = small_model("TextClassifier"), small_file("TextClassifier", format)
    inputs = samples(model, 2, 40)
    longer = {key: np.pad(array, ((0, 0), (0, 1))) for key, array in inputs.items()}
    with pytest.raises((RuntimeError, onnxruntime.capi.onnxruntime_pybind11_state.Fail)) as error:
        run(path, longer)
    assert "40" in str(error.value)


@both
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_weights_beside_the_graph(precision, format, tmp_path, monkeypatch, small_file):
    monkeypatch.setattr(onnx_graph, "_LARGEST_FILE", 10_000)
    model = small_model("Pretrainer")
    path = written(model, tmp_path, format, precision)
    inputs = samples(model, 4, 17)
    found, same = run(path, inputs), run(small_file("Pretrainer", format, precision), inputs)
    assert all(np.array_equal(found[key], same[key]) for key in same)
    files = {"onnx": ["model.onnx", "model.onnx.data"], "openvino": ["model.bin", "model.xml"]}
    assert sorted(file.name for file in tmp_path.iterdir()) == files[format]
    if format == "onnx":
        assert path.stat().st_size < 60_000
        onnx.checker.check_model(path, full_check=True)


@every_task
def test_graph_is_fused(name, small_file):
    path = small_file(name, "onnx")
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    assert [opset.domain for opset in model.opset_import] == [""]  # ONNX's own operations
    count = Counter(node.op_type for node in model.graph.node)
    has_head = name in ("CausalLM", "MaskedLM", "Pretrainer")
    assert count["LayerNormalization"] == 2 * LAYERS + 1 + has_head
    assert count["Gelu"] == LAYERS + has_head
    assert count["Softmax"] == count["Split"] == LAYERS
    heads = {"Backbone": 1, "CausalLM": 2, "MaskedLM": 2, "Pretrainer": 4, "TextEmbedder": 0}
    tokens = {"QuestionAnswering": 1, "TokenClassifier": 1}
    assert count["MatMul"] == 6 * LAYERS + {**heads, **tokens}.get(name, 2)


@both
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_nothing_of_this_machine_is_inside(precision, format, small_file):
    path = small_file("Pretrainer", format, precision)
    places = {sys.prefix, os.getcwd(), tempfile.gettempdir(), str(pathlib.Path.home())}
    places |= {str(pathlib.Path(keras_megatron.__file__).parent), str(path.parent)}
    for file in path.parent.iterdir():
        content = file.read_bytes()
        assert not [place for place in places if place.encode() in content]
    if format == "onnx":
        model = onnx.load(path)
        assert not model.doc_string + model.graph.doc_string
        assert not model.metadata_props
        assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


def test_errors(tmp_path):
    classifier = make("TextClassifier")
    for write in (write_onnx, write_openvino):
        with pytest.raises(ValueError, match=r"one of float32, bfloat16, int8, not 'float64'"):
            write(classifier, tmp_path, "float64")
    with pytest.raises(ValueError, match=r"'bfloat16' is not for ONNX.* use 'float32' or 'int8'"):
        write_onnx(classifier, tmp_path, "bfloat16")

    class Changed(keras_megatron.MegatronBertTextClassifier):
        pass

    encoder = small_backbone(num_layers=1)
    with pytest.raises(ValueError, match="Changed has no form in ONNX: those that have are Mega"):
        write_onnx(Changed(encoder, num_classes=2), tmp_path, "float32")
    odd = make("Backbone", num_layers=1, activation="relu6")
    with pytest.raises(ValueError, match="activation 'relu6' has no counterpart in ONNX: use one"):
        write_openvino(odd, tmp_path, "float32")
    classifier.quantize("int8")
    with pytest.raises(ValueError, match=r"weights are quantized to int8: .* precision='int8'"):
        write_onnx(classifier, tmp_path, "int8")
    assert not list(tmp_path.iterdir())
