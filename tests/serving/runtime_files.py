"""Small models, the ONNX and OpenVINO files of them, and what these answer."""

import functools
import pathlib

import keras
import numpy as np
import onnxruntime
import openvino
from huggingface import largest_difference, random_inputs
from models import randomize, small_backbone

import keras_megatron
from keras_megatron.serving.onnx_format import write_onnx
from keras_megatron.serving.openvino_format import write_openvino

TASKS = {
    "Backbone": {},
    "CausalLM": {},
    "MaskedLM": {},
    "MultipleChoice": {},
    "NextSentencePredictor": {},
    "Pretrainer": {},
    "QuestionAnswering": {},
    "TextClassifier": {"num_classes": 3},
    "TextEmbedder": {"pooling": "mean"},
    "TokenClassifier": {"num_classes": 5},
}
OUTPUTS = {
    "Backbone": ["sequence_output", "pooled_output"],
    "Pretrainer": ["mlm", "nsp"],
    "TextEmbedder": ["embedding"],
}
LAYERS = 2


def make(name: str, **backbone) -> keras.Model:
    encoder = small_backbone(**{"num_layers": LAYERS, **backbone})
    task = getattr(keras_megatron, f"MegatronBert{name}")
    model = encoder if name == "Backbone" else task(encoder, **TASKS[name])
    randomize(model)
    return model


@functools.cache
def small_model(name: str) -> keras.Model:
    return make(name)


def written(model, folder: pathlib.Path, format: str, precision: str = "float32") -> pathlib.Path:
    if format == "onnx":
        write_onnx(model, folder, precision)
        return folder / "model.onnx"
    write_openvino(model, folder, precision)
    return folder / "model.xml"


@functools.cache
def loaded(path: pathlib.Path, hint: str):
    if path.suffix == ".onnx":
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": hint})


def run(path: pathlib.Path, inputs: dict, hint: str = "f32") -> dict[str, np.ndarray]:
    """Answer by a file alone: outputs by name."""
    model = loaded(path, hint)
    if path.suffix == ".onnx":
        assert {x.name for x in model.get_inputs()} == set(inputs)
        names = [output.name for output in model.get_outputs()]
        return dict(zip(names, model.run(names, inputs), strict=True))
    assert {x.any_name for x in model.inputs} == set(inputs)
    return {output.any_name: array.copy() for output, array in model(inputs).items()}


def expected(model, inputs: dict) -> dict[str, np.ndarray]:
    outputs = model(inputs, training=False)
    if not isinstance(outputs, dict):
        is_embedder = isinstance(model, keras_megatron.MegatronBertTextEmbedder)
        outputs = {"embedding" if is_embedder else "logits": outputs}
    return {name: np.asarray(array) for name, array in outputs.items()}


def samples(model, batch: int, sequence: int, masks: int = 2) -> dict[str, np.ndarray]:
    """Ids with padding and two segments. One of several choices is not there."""
    choices = 3 if isinstance(model, keras_megatron.MegatronBertMultipleChoice) else 1
    inputs = random_inputs(131, batch * choices, sequence, masks)
    if choices > 1:
        inputs["padding_mask"][-1] = 0
        inputs = {key: x.reshape(batch, choices, -1) for key, x in inputs.items()}
    if "encoder_hidden_states" in model.input:
        rng = np.random.default_rng(3)
        inputs["encoder_hidden_states"] = rng.normal(size=(batch, 9, 48)).astype("float32")
        inputs["encoder_padding_mask"] = (np.arange(9) < 6).astype("int32")[None].repeat(batch, 0)
    return {key: inputs[key] for key in model.input}


def error(path: pathlib.Path, model, inputs: dict, answered: dict | None = None, **how) -> float:
    """Return by how much a file's answers differ at most from the model's.

    Args:
        path: the file.
        model: what it was written from.
        inputs: what the model answers.
        answered: what the file answers, if that is something else.
        how: of `run`.
    """
    wanted = expected(model, inputs)
    found = run(path, answered or inputs, **how)
    assert set(found) == set(wanted)
    assert all(array.dtype == "float32" for array in found.values())
    assert all(found[key].shape == wanted[key].shape for key in wanted)
    return max(largest_difference(found[key], wanted[key]) for key in wanted)
