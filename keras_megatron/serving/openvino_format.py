"""Any task, or a backbone, as a model of OpenVINO, by way of its ONNX graph."""

import pathlib
import tempfile

import openvino

from keras_megatron.layers.token_inputs import INPUTS
from keras_megatron.serving.onnx_format import check_precision, model_graph


def write_openvino(model, folder: pathlib.Path, precision: str) -> None:
    """Write `model.xml` and `model.bin`.

    Inputs, outputs and sizes are those of `write_onnx`, and so are the errors. What OpenVINO
    computes in is chosen where it runs: on a CPU with bfloat16 it takes that, even for a float32
    model, unless `compile_model(..., {"INFERENCE_PRECISION_HINT": "f32"})` says otherwise.

    Args:
        model: a task or a backbone.
        folder: is made if it is not there.
        precision: `"float32"`; `"bfloat16"`, for which the weights are stored in float16, no larger
            and more exact, and the hint is `"bf16"`; or `"int8"`, for which the kernels of the
            encoder and the table of words are stored in 8 bits, a scale a column, and the rest in
            float32.

    Raises:
        ValueError: the precision is another one, or the model has no form in ONNX.
    """
    check_precision(precision)
    graph = model_graph(model, "stored" if precision == "int8" else None)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = pathlib.Path(temporary) / "model.onnx"
        graph.save(path)
        converted = openvino.Core().read_model(path)
        _bound_sequences(converted, getattr(model, "backbone", model).max_sequence_length)
        _name_only_ends(converted)
        half = precision == "bfloat16"
        openvino.save_model(converted, folder / "model.xml", compress_to_fp16=half)
        del converted  # it maps the file


def _bound_sequences(converted: openvino.Model, limit: int) -> None:
    """Make inputs with more tokens than there are positions an error: OpenVINO checks nothing."""
    shapes = {}
    for value in converted.inputs:
        shapes[value.any_name] = shape = value.partial_shape
        if value.any_name in INPUTS:
            shape[len(shape) - 1] = openvino.Dimension(1, limit)
    converted.reshape(shapes)


def _name_only_ends(converted: openvino.Model) -> None:
    """Leave names to inputs and outputs alone.

    OpenVINO drops operations when it compiles, and would give their values' names to these, too.
    """
    ends = [(value, value.any_name) for value in (*converted.inputs, *converted.outputs)]
    for operation in converted.get_ops():
        for value in operation.outputs():
            value.tensor.set_names(set())
    for value, name in ends:
        value.tensor.set_names({name})
