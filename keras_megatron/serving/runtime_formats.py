"""What ONNX and OpenVINO exports have beside the model: a tokenizer, and what numbers mean."""

import json
import pathlib

from keras_megatron.serving.settings import ExportSettings


def write_for_runtime(model, folder: pathlib.Path, settings: ExportSettings) -> None:
    """Write a model for onnxruntime or OpenVINO, on whatever backend it is.

    Beside the model there is `model.json`, with its task, `class_names` and `sequence_length`; and,
    if it has a preprocessor, `tokenizer.json`, which `tokenizers.Tokenizer.from_file` reads.

    Args:
        model: a task or a backbone.
        folder: empty.
        settings: what was asked for.

    Raises:
        ValueError: the model has no form in this format and precision.
    """
    precision = settings.precision or "float32"
    if settings.format == "onnx":
        from keras_megatron.serving.onnx_format import write_onnx

        write_onnx(model, folder, precision)
    else:
        from keras_megatron.serving.openvino_format import write_openvino

        write_openvino(model, folder, precision)
    preprocessor = getattr(model, "preprocessor", None)
    facts = {
        "task": type(model).__name__,
        "precision": precision,
        "inputs": list(model.input),
        "max_sequence_length": getattr(model, "backbone", model).max_sequence_length,
        "sequence_length": getattr(preprocessor, "sequence_length", None),
        "class_names": getattr(preprocessor, "class_names", None),
    }
    (folder / "model.json").write_text(json.dumps(facts, indent=2) + "\n")
    if preprocessor is not None:
        rows = preprocessor.tokenizer.to_tokenizers(preprocessor.sequence_length)
        rows.save(str(folder / "tokenizer.json"))
