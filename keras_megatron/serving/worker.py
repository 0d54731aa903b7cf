"""The part of an export that runs on Keras's TensorFlow backend, whatever backend trained a model.

    echo SETTINGS | KERAS_BACKEND=tensorflow python -m keras_megatron.serving.worker PRESET FOLDER

SETTINGS is JSON of `ExportSettings`. The last line of what it prints is JSON: what was written, or
an `error`.
"""

import contextlib
import json
import pathlib
import sys

import keras
import keras_hub

import keras_megatron
from keras_megatron.presets.stored_task import is_quantized, stored_task
from keras_megatron.serving.settings import ExportSettings


def write(preset: str, folder: pathlib.Path, settings: ExportSettings) -> dict:
    """Load a preset and write it in the format asked for.

    Args:
        preset: a folder or a name.
        folder: empty; what is written goes there.
        settings: what was asked for.

    Returns:
        What the format says of what it wrote, for JSON.

    Raises:
        ValueError: the preset cannot be loaded, or not be written in this way.
    """
    if settings.format == "saved_model":
        from keras_megatron.serving.saved_model import write_saved_model

        return write_saved_model(load(preset, settings), folder, settings)
    from keras_megatron.serving.runtime_formats import write_for_runtime

    return write_for_runtime(load(preset, settings), folder, settings)


def load(preset: str, settings: ExportSettings):
    """Load a preset's task, or its backbone, in the precision asked for.

    Raises:
        ValueError: its weights are quantized and another precision is asked for.
    """
    stored = stored_task(preset)
    cls = getattr(keras_megatron, stored.name if stored else "MegatronBertBackbone")
    if is_quantized(preset):
        if settings.precision not in (None, "int8"):
            raise ValueError(
                f"{preset} has quantized weights: export it as it is, without precision="
                f"{settings.precision!r}"
            )
        model = cls.from_preset(preset)
    else:
        bfloat16 = settings.precision == "bfloat16" and settings.format == "saved_model"
        model = cls.from_preset(preset, dtype="bfloat16" if bfloat16 else "float32")
        if settings.precision == "int8" and settings.format == "saved_model":
            model.quantize("int8")
    if settings.sampler is not None:
        model.compile(sampler=keras_hub.samplers.deserialize(settings.sampler))
    return model


def main() -> None:
    """Do what the module says; exit with 2 after an error of the user's."""
    preset, folder = sys.argv[1:]
    settings = ExportSettings(**json.load(sys.stdin))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            written = write(preset, pathlib.Path(folder), settings)
    except ValueError as error:
        print(json.dumps({"error": str(error)}))
        sys.exit(2)
    print(json.dumps(written))


if __name__ == "__main__":
    assert keras.backend.backend() == "tensorflow"
    main()
