import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import keras
import keras_hub

from keras_megatron.checkpoints.staging import reason, staged_folder
from keras_megatron.serving.loading import check_class, load
from keras_megatron.serving.settings import ExportSettings


@dataclasses.dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        folder: where it is; of a SavedModel the folder of its version.
        signatures: of a SavedModel, the names of `inputs` and `outputs` by signature.
        operations: of a SavedModel, the names of the operations in its graph, sorted: all are
            TensorFlow's, but TensorFlow Text's `FastWordpieceTokenizeWithOffsets`.
    """

    folder: pathlib.Path
    signatures: dict[str, dict[str, list[str]]]
    operations: list[str]


def export(model, path: str | os.PathLike, format: str = "saved_model", **options) -> Exported:
    """Write a model in a form that is served without this package, whatever backend trained it.

    Args:
        model: a task, or a backbone. Without a preprocessor it is served on ids only.
        path: For a SavedModel the folder of its versions, in which the next one is made: 1, 2 and
            so on. For the other formats the folder to make.
        format: `"saved_model"` for TensorFlow Serving: strings in and answers out by the signature
            `serving_default`, ids in and logits out by `tensors`, any number of texts of any
            length. Or `"onnx"` or `"openvino"`: ids in, logits out.
        **options: `precision`, `"float32"`, `"bfloat16"` or `"int8"`; by default float32, and a
            quantized model as it is. `top_k`, int, tokens for each mask of a masked language
            model. `pairs`, bool, whether `serving_default` of a text classifier takes pairs of
            texts, for which there is the signature `pairs` otherwise. `max_length`, int, tokens
            that a causal language model makes, prompt included; those of its preprocessor by
            default. `warmup`, bool, whether to write requests that TensorFlow Serving replays when
            it starts.

    Returns:
        An `Exported`.

    Raises:
        ValueError: an option is out of range, what the format needs is not installed, the model
            cannot be written in it, or the folder cannot be written. Nothing half-written stays.

    Example:
    ```python
    from keras_megatron import MegatronBertMaskedLM, serving

    masked_lm = MegatronBertMaskedLM.from_preset("megatron_bert_tiny_uncased")
    exported = serving.export(masked_lm, "masked_lm", warmup=False)
    assert exported.signatures["serving_default"]["inputs"] == ["text"]
    ```
    """
    sampler = getattr(model, "sampler", None)  # of a causal language model, if it is compiled
    if sampler is not None and "sampler" not in options:
        options["sampler"] = keras_hub.samplers.serialize(sampler)
    settings = make_settings(format, options)
    settings.check_task(type(model).__name__)
    if format != "saved_model":
        return _export_for_runtime(model, path, settings)
    check_class(type(model))
    with tempfile.TemporaryDirectory() as preset:
        model.save_to_preset(preset)
        return export_preset(preset, path, settings)


def make_settings(format: str, options: dict) -> ExportSettings:
    """Check the options of an export.

    Raises:
        ValueError: there is no such option, or it is out of range.
    """
    known = {field.name for field in dataclasses.fields(ExportSettings)} - {"format"}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"unknown option {unknown[0]!r}: known are {', '.join(sorted(known))}")
    return ExportSettings(format=format, **options)


def export_preset(preset: str, path: str | os.PathLike, settings: ExportSettings) -> Exported:
    """Do what `export` does with a preset, which need not be loaded here.

    Args:
        preset: name or folder.
        path: as of `export`.
        settings: what is asked for.

    Raises:
        ValueError: as of `export`.
    """
    if settings.format != "saved_model":
        return _export_for_runtime(load(preset, settings, "float32"), path, settings)
    _check_installed("tensorflow", "tensorflow_text")
    target = pathlib.Path(path).absolute()
    folder = target / str(_next_version(target))
    with staged_folder(folder) as staged:
        written = _write(preset, staged, settings)
    return Exported(folder, written["signatures"], written["operations"])


def _export_for_runtime(model, path: str | os.PathLike, settings: ExportSettings) -> Exported:
    _check_installed("onnx", *(["openvino"] if settings.format == "openvino" else []))
    from keras_megatron.serving.runtime_formats import write_for_runtime

    with staged_folder(path) as staged:
        write_for_runtime(model, staged, settings)
    return Exported(pathlib.Path(path).absolute(), {}, [])


def _next_version(path: pathlib.Path) -> int:
    """Return one more than the versions that are there.

    Raises:
        ValueError: the folder cannot be read.
    """
    try:
        names = [entry.name for entry in path.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return 1
    except OSError as error:
        raise ValueError(f"cannot read {path}: {reason(error)}") from error
    return 1 + max((int(name) for name in names if name.isdecimal()), default=0)


def _check_installed(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ValueError(
                f"this export needs {module}, which is not installed: pip install "
                "'keras-megatron[tensorflow,serving]'"
            )


def _write(preset: str, folder: pathlib.Path, settings: ExportSettings) -> dict:
    """Write here if Keras runs on TensorFlow, and in a process in which it does otherwise."""
    if keras.backend.backend() == "tensorflow":
        from keras_megatron.serving.worker import write

        return write(preset, folder, settings)
    done = subprocess.run(
        [sys.executable, "-m", "keras_megatron.serving.worker", preset, str(folder)],
        input=json.dumps(dataclasses.asdict(settings)),
        env=_environment(),
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    if done.returncode == 0:
        return json.loads(lines[-1])
    if lines and lines[-1].startswith('{"error"'):
        raise ValueError(json.loads(lines[-1])["error"])
    raise RuntimeError(f"the export's own process failed with {done.returncode}:\n{done.stderr}")


def _environment() -> dict[str, str]:
    """Return the environment of a process with one CPU device, on TensorFlow."""
    dropped = ("KERAS_DISTRIBUTION_", "XLA_FLAGS", "PYTHONWARNINGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    path = os.pathsep.join([str(pathlib.Path(__file__).parents[2]), kept.get("PYTHONPATH", "")])
    return {
        **kept,
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": path,
    }
